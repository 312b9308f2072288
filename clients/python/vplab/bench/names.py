"""The words of the command line, by themselves: the other verbs need not load a load generator to list them."""

from collections.abc import Mapping
from typing import Literal, get_args

WorkName = Literal["click", "click-image", "embed", "segment"]
WORKS: Mapping[WorkName, str] = {
    "click": "clicks on images whose embeddings are cached, named by digest",
    "click-image": "the same clicks with the image sent in each call",
    "embed": "embedding of images that nobody has seen",
    "segment": "segmentation by a prompt set of images that nobody has seen",
}
BulkName = Literal["precompute", "stream", "segment"]
BULKS: Mapping[BulkName, str] = {
    "precompute": "a job that embeds images of the registry",
    "stream": "callers that have images embedded",
    "segment": "callers that have images segmented by a prompt set, as vplab segment does with a folder",
}
AxisName = Literal["objects", "images", "references", "image-size", "embed-size", "adapters"]
AXES: tuple[AxisName, ...] = get_args(AxisName)
SECTIONS = ("sweep", "arrivals", "beside", "growth")
"""Of a report, in the order in which they are measured."""
