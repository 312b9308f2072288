"""From a spec to the parts that carry it out, in the order in which they wrap a linear layer."""

from segment_anything.modeling import MaskDecoder

from vplab.errors import InvalidInput
from vplab.vision.adapters.adapter_layers import AdapterLayers
from vplab.vision.adapters.boft import Boft
from vplab.vision.adapters.conv_lora import ConvLora
from vplab.vision.adapters.full_decoder import FullDecoder
from vplab.vision.adapters.hq_token import HqToken
from vplab.vision.adapters.ia3 import Ia3
from vplab.vision.adapters.image_context import ImageContext
from vplab.vision.adapters.lora import Lora
from vplab.vision.adapters.part import Part
from vplab.vision.adapters.prompt_tokens import PromptTokens
from vplab.vision.adapters.qlora import Qlora
from vplab.vision.adapters.spec import (
    AdapterLayersSpec,
    AdapterSpec,
    BoftSpec,
    ConvLoraSpec,
    EPeftSpec,
    FullDecoderSpec,
    HqTokenSpec,
    Ia3Spec,
    ImageContextSpec,
    LoraSpec,
    PromptTokensSpec,
    QloraSpec,
)
from vplab.vision.adapters.walk import linear_sites


def parts_of(spec: AdapterSpec, decoder: MaskDecoder) -> tuple[Part, ...]:
    """Return the parts of an adapter for this decoder. Raises InvalidInput naming the field that does not fit it."""
    match spec:
        case LoraSpec():
            return (Lora(spec, linear_sites(decoder)),)
        case Ia3Spec():
            return (Ia3(spec, linear_sites(decoder)),)
        case PromptTokensSpec():
            return (PromptTokens(spec, decoder),)
        case ImageContextSpec():
            return (ImageContext(spec, decoder.transformer_dim),)
        case EPeftSpec():
            return _e_peft(spec, decoder)
        case HqTokenSpec():
            return (HqToken(spec, decoder),)
        case BoftSpec():
            return (Boft(spec, linear_sites(decoder)),)
        case ConvLoraSpec():
            return (ConvLora(spec, linear_sites(decoder)),)
        case QloraSpec():
            return (Qlora(spec, linear_sites(decoder)),)
        case AdapterLayersSpec():
            return (AdapterLayers(spec, len(decoder.transformer.layers), decoder.transformer_dim),)
        case FullDecoderSpec():
            return (FullDecoder(decoder),)


def _e_peft(spec: EPeftSpec, decoder: MaskDecoder) -> tuple[Part, ...]:
    """Return the parts that are not left out; IA3 scales what LoRA has changed."""
    parts: list[Part] = []
    for field in ("lora", "ia3", "prompt_tokens", "image_context", "mask_head"):
        part = getattr(spec, field)
        if part is not None:
            try:
                # Both are LoRA; each has its tensors under its own name.
                is_head = field == "mask_head"
                parts.extend([Lora(part, linear_sites(decoder), field)] if is_head else parts_of(part, decoder))
            except InvalidInput as error:
                raise error.under(field) from error
    return tuple(parts)
