"""Segment Anything in torch: building it from published weights, and the graphs that serving runs instead of torch.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), and the modules of the ``segment-anything`` 1.0
distribution, whose layers and state-dict names are kept. Imports torch: for making models, never for serving them.
"""
