"""The process that works on tuning jobs: fetch, embed, train, export, publish. torch is imported here and nowhere else
in the service.
"""
