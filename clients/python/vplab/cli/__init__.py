"""The ``vplab`` command: serve, prompt, segment, evaluate, models, status, demo.

It speaks to services through ``vplab.client`` like any other program; where none are running it starts them for as long
as a verb lasts.
"""
