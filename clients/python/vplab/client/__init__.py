"""VP Lab from Python: numpy arrays in, masks out, over gRPC.

``Client`` blocks, ``AsyncClient`` awaits; both have ``registry``, ``embedding``, ``segmentation`` and ``training`` with
the same methods. Calls have deadlines, are retried while a server is unavailable (as the published gRPC service config
says), and fail with the kinds of ``vplab.errors`` only.
"""

from vplab.client.aio import AsyncClient
from vplab.client.options import ClientOptions, TlsOptions
from vplab.client.segmentation.values import PromptSetDraft, Reference, SegmentClass, SegmentOptions
from vplab.client.snapshots import AsyncSnapshots, Snapshot
from vplab.client.sync import Client
from vplab.vision.prompts import ObjectPrompt
from vplab.wire.images import DigestImage, FrameImage, ImageSource

__all__ = [
    "AsyncClient",
    "AsyncSnapshots",
    "Client",
    "ClientOptions",
    "DigestImage",
    "FrameImage",
    "ImageSource",
    "ObjectPrompt",
    "PromptSetDraft",
    "Reference",
    "SegmentClass",
    "SegmentOptions",
    "Snapshot",
    "TlsOptions",
]
