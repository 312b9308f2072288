"""The load generator of ``vplab bench``: callers in processes of their own, and the figures of what they saw.

It speaks raw bytes to anything that can be called, so that other servers are measured by the very same loop.
"""
