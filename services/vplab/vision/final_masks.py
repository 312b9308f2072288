"""The last step of an answer to a prompt: the decoder's logits to a mask of the image's own size."""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.colour_evidence import ColourModel
from vplab.vision.masks import upsample_logits
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt
from vplab.vision.specs import SegmenterSpec


def final_mask(
    logits: NDArray[np.float32],
    prompt: ObjectPrompt,
    transform: FrameTransform,
    spec: SegmenterSpec,
    colours: ColourModel | None,
) -> NDArray[np.bool_]:
    """Return the mask (H, W) that one plane of logits means in the original image.

    logits: (h, w) float32 over the padded input. colours: what sharpens them first, None to take them as they are.
    """
    sharp = logits if colours is None else colours.sharpen(logits)
    return prompt.bounded(upsample_logits(sharp[None], transform)[0] > spec.mask_threshold, spec)
