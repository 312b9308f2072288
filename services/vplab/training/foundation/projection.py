"""The linear map from the trunk's maps to the patch features: principal components of the training images.

Each level is centred and brought to equal mean energy first, since the strides differ fivefold in magnitude.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vplab.training.foundation.sources import CANVAS, Source
from vplab.vision.nano.architecture import FEATURE_DIM, FEATURE_STRIDE, FEATURE_STRIDES, NanoSegmenter
from vplab.vision.nano.trunk import CHANNELS

IMAGES_PER_SOURCE = 60
CELLS_PER_IMAGE = 400


def fit_projection(model: NanoSegmenter, sources: Sequence[Source], seed: int = 0) -> float:
    """Set the model's projection from training images; returns the share of the variance it keeps."""
    rows = _sample_cells(model, sources, np.random.default_rng(seed))
    mean = rows.mean(0)
    centred = rows - mean
    widths = [CHANNELS[stride] for stride in FEATURE_STRIDES]
    scale = torch.cat([w.new_ones(w.shape[1]) / w.square().sum(1).mean().sqrt() for w in centred.split(widths, dim=1)])
    values, vectors = torch.linalg.eigh((centred * scale).T @ (centred * scale) / len(rows))  # ascending
    components = vectors.flip(1)[:, :FEATURE_DIM].T
    # The largest entry of a component is positive, or its sign would be the library's choice.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    weight = components * largest.sign() * scale
    model.encoder.projection.weight.copy_(weight)
    model.encoder.projection.offset.copy_(-weight @ mean)
    return float(values.flip(0)[:FEATURE_DIM].sum() / values.sum())


def _sample_cells(model: NanoSegmenter, sources: Sequence[Source], rng: np.random.Generator) -> Tensor:
    rows = []
    for source in sources:
        chosen = rng.choice(len(source.entries), min(IMAGES_PER_SOURCE, len(source.entries)), replace=False)
        for index in chosen:
            height, width = source.entries[index].size_hw
            image = torch.full((1, 3, CANVAS, CANVAS), 127.5)
            picture = np.array(source.images[index, :height, :width])
            image[0, :, :height, :width] = torch.from_numpy(picture).permute(2, 0, 1)
            with torch.no_grad():
                maps = model.encoder.feature_maps((image - 127.5) / 127.5)
            y = torch.from_numpy(rng.integers(0, height // FEATURE_STRIDE, CELLS_PER_IMAGE))
            x = torch.from_numpy(rng.integers(0, width // FEATURE_STRIDE, CELLS_PER_IMAGE))
            levels = [_at_cells(maps[stride], y, x, stride // FEATURE_STRIDE) for stride in FEATURE_STRIDES]
            rows.append(torch.cat(levels, dim=1))
    return torch.cat(rows)


def _at_cells(level: Tensor, y: Tensor, x: Tensor, factor: int) -> Tensor:
    if factor > 1:
        level = torch.nn.functional.interpolate(level, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return level[0, :, y, x].T
