"""The segmentation service: masks from clicks and boxes, and from reference images.

It needs a registry (segmenters, adapters, prompt sets) and an embedding service (image embeddings, patch features), and
runs the prompt encoder and mask decoder itself, on ONNX Runtime, with or without an adapter merged in. It refuses
adapters made for another segmenter, models whose embeddings do not fit together, and work that its device cannot do
before the caller's deadline.
"""
