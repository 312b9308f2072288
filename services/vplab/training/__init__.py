"""The training service: tunes adapters in the segmenter's mask decoder on a few validated images.

Tuning is not offered yet: the server runs, reports its health and answers every call with UNIMPLEMENTED, so that
clients and deployments can be built against the contract. It imports torch only where models are made.
"""
