"""The mathematics of visual prompting: plain arrays in, plain arrays out; no wire, no files, no environment.

Letters in shapes, everywhere in the project: B batch, N points or prompts, M masks, H W pixels, h w patch or embedding
grid, D feature width, C channels, R LoRA rank, P tokens of one prompt. Points are (x, y), boxes (x_min, y_min, x_max,
y_max), sizes (height, width).

Modules of this package that import torch live in ``vplab.vision.sam``, ``vplab.vision.nano`` and
``vplab.vision.adapters``; everything else runs on numpy and OpenCV, which is what keeps the inference services small.
"""
