"""The nano models in torch: a small image encoder below segment-anything's own prompt encoder and mask decoder.

For making the models (training, export); what runs in the services is the exported graphs.
"""
