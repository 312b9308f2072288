"""Tuning: a few validated masks train an adapter in the mask decoder, on embeddings that were computed once.

``values`` says what goes in and out, ``augmentation`` which extra views of an image are worth embedding, ``examples``
turns embedded views into what is trained on, and ``trainer.tune`` trains. No wire, no registry; the only thing that is
written is the checkpoint.
"""
