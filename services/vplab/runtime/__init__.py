"""The gRPC server frame, the same for every service.

A service brings its servicers as ``Registration``s and its settings; the frame brings health, reflection, status
details, limits, deadlines, request ids, logs, metrics, traces, TLS, tokens and an orderly stop. Work for a device goes
through a ``DeviceQueue``, so that the event loop never waits for a computation. Nothing here imports torch.
"""
