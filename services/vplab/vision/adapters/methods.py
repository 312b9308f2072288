"""From a spec to the parts that carry it out, in the order in which they wrap a linear layer."""

from segment_anything.modeling import MaskDecoder

from vplab.errors import InvalidInput
from vplab.vision.adapters.ia3 import Ia3
from vplab.vision.adapters.image_context import ImageContext
from vplab.vision.adapters.lora import Lora
from vplab.vision.adapters.part import Part
from vplab.vision.adapters.prompt_tokens import PromptTokens
from vplab.vision.adapters.spec import AdapterSpec, EPeftSpec, Ia3Spec, ImageContextSpec, LoraSpec, PromptTokensSpec
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


def _e_peft(spec: EPeftSpec, decoder: MaskDecoder) -> tuple[Part, ...]:
    """Return the parts that are not left out; IA3 scales what LoRA has changed."""
    parts: list[Part] = []
    for field in ("lora", "ia3", "prompt_tokens", "image_context"):
        part = getattr(spec, field)
        if part is not None:
            try:
                parts.extend(parts_of(part, decoder))
            except InvalidInput as error:
                raise error.under(field) from error
    return tuple(parts)
