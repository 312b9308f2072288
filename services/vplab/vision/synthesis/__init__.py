"""Generated inspection images with exact masks, from numpy and OpenCV alone: for the demo, for tests, for training.

A surface with relief and colour carries defects; a light shades it; a camera takes the picture. Everything is drawn
from one seed, so the same call gives the same images.
"""

from vplab.vision.synthesis.defects import DEFECTS
from vplab.vision.synthesis.scenes import (
    InspectionImage,
    LabelledScene,
    synthesize_inspection_set,
    synthesize_scene,
    synthesize_section,
)
from vplab.vision.synthesis.surfaces import SURFACES

__all__ = [
    "DEFECTS",
    "SURFACES",
    "InspectionImage",
    "LabelledScene",
    "synthesize_inspection_set",
    "synthesize_scene",
    "synthesize_section",
]
