"""The training service: tunes adapters in the segmenter's mask decoder on a few validated images.

It needs the registry and the embedding service, and refuses at creation what could not be tuned on. Jobs are kept in
a database under leases, so that several trainers share a queue and a killed one's job is taken up from its checkpoint.
The service itself imports no torch: a worker process does. Exports to line
bundles share the queue; they need no torch and are made in the service's own process.
"""
