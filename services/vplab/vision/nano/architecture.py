"""The nano image encoder and the nano segmenter: one trunk, two outputs, and SAM's own prompt encoder and decoder.

Source of the decoder: Kirillov et al., "Segment Anything" (arXiv 2304.02643), modules of ``segment-anything`` 1.0 with
the published widths (256 wide, two two-way layers), so adapters and exports are those of the real thing.
"""

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from vplab.vision.nano.trunk import CHANNELS, MobileNetTrunk, upper_maps
from vplab.vision.sam.onnx_decoder import PromptDecoder
from vplab.vision.specs import ColourEvidence, PromptRaster

INPUT_SIZE = 512
EMBED_DIM = 256
STRIDE = 16
FEATURE_STRIDE = 8
FEATURE_DIM = 128
COLOUR_STRIDE = 2
EARLY_STRIDE = 4
EARLY_CHANNELS = CHANNELS[EARLY_STRIDE] * (STRIDE // EARLY_STRIDE) ** 2
"""Of the early feature on the embedding's grid: 24 channels times 4 x 4 places of a cell."""
MEAN_RGB = (127.5, 127.5, 127.5)
STD_RGB = (127.5, 127.5, 127.5)
"""To -1..1; ``NanoEncoder`` undoes it for the colours."""
RASTER = PromptRaster(box_inside=2.0, box_outside=-4.0, click_peak=4.0, click_sigma=2.0)
# Deviation: masks of the nano segmenter are sharpened by colour and end where a lone box does; SAM's are the decoder's.
COLOUR_EVIDENCE = ColourEvidence(weight=0.5, levels=32, smoothing=1.4, sure_logit=1.0, reach=0.25)
FEATURE_STRIDES = (8, 16, 32)


class Neck(nn.Module):
    """Fuse strides 4 to 32 into the image embedding at ``stride``, 16 or 8.

    Finer maps are folded into channels (pixel unshuffle), not pooled: the decoder's two transposed convolutions can
    only restore detail below a cell that the embedding still holds. Coarser ones are enlarged.
    """

    def __init__(self, stride: int = STRIDE) -> None:
        super().__init__()
        self.stride = stride
        width = sum(max(1, stride // s) ** 2 * channels for s, channels in CHANNELS.items())
        self.fuse = nn.Conv2d(width, EMBED_DIM, 1)
        self.norm = LayerNorm2d(EMBED_DIM)
        self.mix = nn.ModuleList([MixingBlock(EMBED_DIM) for _ in range(2)])
        self.out_norm = LayerNorm2d(EMBED_DIM)

    def forward(self, maps: dict[int, Tensor]) -> Tensor:
        """Return (B, 256, h, w), h and w the input's sides over the stride."""
        x = self.norm(self.fuse(torch.cat([self._on_grid(maps[s], s) for s in CHANNELS], dim=1)))
        for block in self.mix:
            x = block(x)
        out: Tensor = self.out_norm(x)
        return out

    def _on_grid(self, level: Tensor, stride: int) -> Tensor:
        if stride < self.stride:
            return F.pixel_unshuffle(level, self.stride // stride)
        if stride == self.stride:
            return level
        scale = float(stride // self.stride)
        return F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=False)


class MixingBlock(nn.Module):
    """A residual 7 x 7 depthwise convolution and a two-layer MLP per cell (ConvNeXt's block, arXiv 2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, C, h, w)."""
        out: Tensor = x + self.mlp(self.norm(self.spread(x)))
        return out


class PatchProjection(nn.Module):
    """A fixed linear map of the concatenated strides 8, 16 and 32 to the matching features, L2-normalised."""

    weight: Tensor
    offset: Tensor

    def __init__(self, width: int = FEATURE_DIM) -> None:
        super().__init__()
        total = sum(CHANNELS[s] for s in FEATURE_STRIDES)
        self.register_buffer("weight", nn.init.orthogonal_(torch.empty(width, total)))
        self.register_buffer("offset", torch.zeros(width))

    def forward(self, maps: dict[int, Tensor]) -> Tensor:
        """Return (B, h, w, D) float32 on the stride-8 grid, unit length over D.

        Each level is projected on its own grid and then enlarged: both steps are linear, and this order is cheaper.
        """
        weights = self.weight.split([CHANNELS[s] for s in FEATURE_STRIDES], dim=1)
        total = self.offset.reshape(1, -1, 1, 1)
        for stride, weight in zip(FEATURE_STRIDES, weights, strict=True):
            level = F.conv2d(maps[stride], weight[:, :, None, None])
            if stride > FEATURE_STRIDE:
                scale = float(stride // FEATURE_STRIDE)
                level = F.interpolate(level, scale_factor=scale, mode="bilinear", align_corners=False)
            total = total + level
        return F.normalize(total.permute(0, 2, 3, 1), dim=-1, eps=1e-6)


class NanoEncoder(nn.Module):
    """An image to its embedding for the mask decoder and its patch features for matching, in one pass.

    Up to stride 4 both share the trunk. Above, the patch features keep the blocks the trunk started with: fine-tuning
    them for masks made classes harder to tell apart.
    """

    def __init__(self, trunk: MobileNetTrunk | None = None, stride: int = STRIDE) -> None:
        super().__init__()
        self.trunk = trunk or MobileNetTrunk()
        self.neck = Neck(stride)
        self.feature_blocks = self.trunk.upper_copy()
        self.projection = PatchProjection()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: (B, 3, H, W) float32, preprocessed.

        Returns (B, 256, H/16, W/16), (B, H/8, W/8, D), and the picture itself, (B, 3, H/2, W/2) RGB in 0..1.
        """
        maps = self.trunk(image)
        features = self.projection(upper_maps(self.feature_blocks, maps[4]))
        return self.neck(maps), features, self.colours(image)

    def colours(self, image: Tensor) -> Tensor:
        """Return the picture at half its size, RGB in 0..1."""
        return F.avg_pool2d(image, COLOUR_STRIDE) * 0.5 + 0.5

    def feature_maps(self, image: Tensor) -> dict[int, Tensor]:
        """Return the maps of strides 8, 16 and 32 that the patch features are projected from."""
        return upper_maps(self.feature_blocks, self.trunk(image)[4])

    def embed(self, image: Tensor) -> Tensor:
        """Return the image embedding alone, which is all that training the segmenter needs."""
        out: Tensor = self.neck(self.trunk(image))
        return out


class EarlyNanoEncoder(nn.Module):
    """A NanoEncoder that also returns an early feature, which HQ-SAM's adapter fuses; the weights are shared.

    Unstated: what HQ-SAM's early feature is of a convolutional encoder; here the map of stride 4, folded into channels.
    It comes before the trunk's depth, is as fine as the decoder's logits, and the last map that masks and matching
    share; folded, nothing of it is lost on the embedding's grid, where the adapter's transposed convolutions begin.
    """

    def __init__(self, encoder: NanoEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.fold = encoder.neck.stride // EARLY_STRIDE

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode as NanoEncoder.forward does; the fourth output is (B, EARLY_CHANNELS, H/16, W/16)."""
        maps = self.encoder.trunk(image)
        features = self.encoder.projection(upper_maps(self.encoder.feature_blocks, maps[EARLY_STRIDE]))
        early = F.pixel_unshuffle(maps[EARLY_STRIDE], self.fold)
        return self.encoder.neck(maps), features, self.encoder.colours(image), early


class NanoSegmenter(nn.Module):
    """Encoder, prompt encoder and mask decoder together, as they are trained."""

    def __init__(self, trunk: MobileNetTrunk | None = None, stride: int = STRIDE) -> None:
        super().__init__()
        self.stride = stride
        self.encoder = NanoEncoder(trunk, stride)
        grid = (INPUT_SIZE // stride, INPUT_SIZE // stride)
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBED_DIM, image_embedding_size=grid, input_image_size=(INPUT_SIZE, INPUT_SIZE), mask_in_chans=16
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8)
        self.mask_decoder = MaskDecoder(transformer_dim=EMBED_DIM, transformer=transformer)

    def decoder(self, input_size: int = INPUT_SIZE) -> PromptDecoder:
        """Return the prompt decoder for square inputs of ``input_size`` pixels; it shares this module's weights.

        The positional encoding is a function of relative position, so any multiple of 32 will do. It changes the prompt
        encoder's size in place: of several decoders the last one made is valid.
        """
        self.prompt_encoder.input_image_size = (input_size, input_size)
        self.prompt_encoder.image_embedding_size = (input_size // self.stride, input_size // self.stride)
        return PromptDecoder(self.prompt_encoder, self.mask_decoder)
