"""Making models that serving can run: publishers' checkpoints become ONNX graphs, each compared with its torch model.

``lazy``, ``catalogue``, ``download``, ``imported``, ``names``, ``parity`` and ``model_card`` import no torch.
"""
