"""What an adapter is made of: the method and its numbers, as kept in ``adapter.json``. Imports no torch.

The defaults are those of the VP Lab paper where its parameter counts reveal them, else of the method's own paper.
Linears are named by the end of their path in SAM's two-way transformer: ``q_proj`` is the q of every attention,
``self_attn.q_proj`` that of the two self-attentions, ``layers.0.mlp.lin1`` a single linear.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from vplab.errors import FieldViolation, InvalidInput

PositiveInt = Annotated[int, Field(gt=0, le=4096)]
NotNegativeInt = Annotated[int, Field(ge=0, le=4096)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Targets = Annotated[tuple[str, ...], Field(min_length=1)]

ATTENTION_INPUTS_AND_MLP: Targets = ("q_proj", "k_proj", "v_proj", "mlp.lin1", "mlp.lin2")
MASK_HEAD: Targets = tuple(
    f"output_hypernetworks_mlps.{plane}.layers.{layer}" for plane in range(4) for layer in range(3)
)
"""The linears that turn each mask token into the vector which its plane is read from the image feature with."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraSpec(_Spec):
    """Low-rank updates (Hu et al., arXiv 2106.09685): 144,384 parameters on SAM's decoder."""

    method: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 8.0
    """The update is scaled by alpha / rank."""
    targets: Targets = ATTENTION_INPUTS_AND_MLP


class Ia3Spec(_Spec):
    """Learned scales of activations (Liu et al., arXiv 2205.05638): 5,632 parameters.

    Unstated: which activations IA3 scales; these are the simplest of those that give the paper's 5.6K.
    """

    method: Literal["ia3"] = "ia3"
    output_targets: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Linears whose output is scaled."""
    input_targets: tuple[str, ...] = ("mlp.lin2",)
    """Linears whose input is scaled: the hidden activation of an MLP."""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if not self.output_targets and not self.input_targets:
            raise ValueError("output_targets and input_targets are both empty")
        return self


class PromptTokensSpec(_Spec):
    """Deep memory tokens before both sequences (VPT-deep, Jia et al., arXiv 2203.12119): 12,800 parameters.

    Unstated: how the 50 prompt tokens are spread; here ten for each sequence that each stage reads.
    """

    method: Literal["prompt_tokens"] = "prompt_tokens"
    query_tokens: tuple[NotNegativeInt, ...] = (10, 10)
    """Tokens before the prompt's sequence, one number for each two-way layer."""
    image_tokens: tuple[NotNegativeInt, ...] = (10, 10, 10)
    """Tokens before the image's sequence, one number for each two-way layer and one for the final attention."""
    gate: Literal["zero", "none"] = "zero"
    """``zero``: memory has a softmax of its own, times a gate for each head that starts at zero (LLaMA-Adapter,
    arXiv 2303.16199), so an untrained adapter is the identity; a few more parameters. ``none``: as VPT."""
    initial_std: PositiveFloat = 0.02
    """Standard deviation of the tokens at the start."""

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        if not sum(self.query_tokens) + sum(self.image_tokens):
            raise ValueError("query_tokens and image_tokens are all zero")
        return self


class ImageContextSpec(_Spec):
    """An MLP from the mean image embedding to an offset of the prompt tokens (VP Lab): 33,088 parameters."""

    method: Literal["image_context"] = "image_context"
    hidden: PositiveInt = 64


class EPeftSpec(_Spec):
    """VP Lab's ensemble of the four, 195,904 parameters besides the gates, and one of ours. A part of None is left out.

    Deviation: the paper states 201.1K parameters for E-PEFT; its four parts, each as the paper counts it, sum to
    195.9K, and nothing published says where the rest is.

    Deviation: ``mask_head`` is a fifth part of 41,984 parameters. None of the four reaches the mask head; with a small
    decoder, HQ-SAM's token and full tuning, which do, were ahead by it.
    """

    method: Literal["e_peft"] = "e_peft"
    lora: LoraSpec | None = LoraSpec()
    ia3: Ia3Spec | None = Ia3Spec()
    prompt_tokens: PromptTokensSpec | None = PromptTokensSpec()
    image_context: ImageContextSpec | None = ImageContextSpec()
    mask_head: LoraSpec | None = LoraSpec(targets=MASK_HEAD)

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        if not any((self.lora, self.ia3, self.prompt_tokens, self.image_context, self.mask_head)):
            raise ValueError("all parts are left out")
        return self


EARLY_INPUT = "early_features"
"""Further input of the decoder's graph with an adapter that has ``early_channels`` E: (B, E, h, w) float32."""


class HqTokenSpec(_Spec):
    """HQ-SAM's token and feature fusion (Ke et al., arXiv 2306.01567): 1,071,104 parameters with ViT-B."""

    method: Literal["hq_token"] = "hq_token"
    early_channels: PositiveInt | None = None
    """Channels of the encoder's early feature: 768, 1024, 1280 for SAM ViT-B, L, H. None: fuse without one."""
    trained_mask: Literal["sum", "alone"] = "sum"
    """What the loss sees: the sum with SAM's mask, which is what serves, from a HQ mask of zero; or as HQ-SAM, which
    has 44,000 images, the HQ mask alone. From a few images that mask learns less than it spoils."""


class BoftSpec(_Spec):
    """Butterfly orthogonal factors (Liu et al., arXiv 2311.06243): 31,360 parameters.

    Unstated: the VP Lab paper names BOFT without its sizes; blocks of four and one factor are the smallest.
    """

    method: Literal["boft"] = "boft"
    block_size: Literal[2, 4, 8, 16, 32, 64] = 4
    factors: Annotated[int, Field(ge=1, le=6)] = 1
    """Butterfly factors; with one the matrix is block-diagonal (OFT)."""
    targets: Targets = ("q_proj", "k_proj", "v_proj", "out_proj")


class ConvLoraSpec(_Spec):
    """LoRA with convolutions on the image's side (Zhong et al., arXiv 2401.17868): 153,728 parameters."""

    method: Literal["conv_lora"] = "conv_lora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 8.0
    targets: Targets = ATTENTION_INPUTS_AND_MLP
    scales: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (1, 2)
    """One 3 x 3 expert for each; it sees the grid enlarged so many times."""


BaseType = Literal["nf4", "int8"]


class QloraSpec(_Spec):
    """LoRA beside a quantised base (Dettmers et al., arXiv 2305.14314): 144,384 parameters."""

    method: Literal["qlora"] = "qlora"
    rank: PositiveInt = 8
    alpha: PositiveFloat = 8.0
    targets: Targets = ATTENTION_INPUTS_AND_MLP
    base_type: BaseType = "nf4"
    """How the weights of the frozen linear layers are kept."""


class AdapterLayersSpec(_Spec):
    """Bottlenecks behind every attention and MLP (Houlsby et al., arXiv 1902.00751): 297,792 parameters."""

    method: Literal["adapter_layers"] = "adapter_layers"
    hidden: PositiveInt = 64


class FullDecoderSpec(_Spec):
    """All of the mask decoder: 4,058,340 parameters."""

    method: Literal["full_decoder"] = "full_decoder"


AdapterSpec = (
    LoraSpec
    | Ia3Spec
    | PromptTokensSpec
    | ImageContextSpec
    | EPeftSpec
    | HqTokenSpec
    | BoftSpec
    | ConvLoraSpec
    | QloraSpec
    | AdapterLayersSpec
    | FullDecoderSpec
)
_SPEC: TypeAdapter[AdapterSpec] = TypeAdapter(Annotated[AdapterSpec, Field(discriminator="method")])

E_PEFT_PAPER = EPeftSpec(prompt_tokens=PromptTokensSpec(gate="none"), mask_head=None)
"""The paper's four parts and nothing else: 195,904 parameters.

Without a gate its tokens take attention from the start, so until it is trained it is near the base decoder and not it.
"""

METHODS: tuple[str, ...] = (
    "image_context",
    "ia3",
    "prompt_tokens",
    "lora",
    "e_peft_paper",
    "e_peft",
    "hq_token",
    "boft",
    "conv_lora",
    "qlora",
    "adapter_layers",
    "full_decoder",
)
"""Every ``method``, and ``e_peft_paper``, whose specs are those of ``e_peft``."""


def default_spec(method: str) -> AdapterSpec:
    """Return a method with its default numbers. Raises InvalidInput (field ``method``) for an unknown one."""
    if method not in METHODS:
        raise InvalidInput(f"no adapter method {method!r}; there are {', '.join(METHODS)}", field="method")
    return E_PEFT_PAPER if method == "e_peft_paper" else _SPEC.validate_python({"method": method})


def adapter_spec_from_json(data: bytes | str) -> AdapterSpec:
    """Read what ``model_dump_json`` wrote. Raises InvalidInput naming each field that is wrong."""
    try:
        return _SPEC.validate_json(data)
    except ValidationError as error:
        violations = [FieldViolation(_field(e["loc"]), e["msg"]) for e in error.errors()]
        problems = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidInput(f"not a valid adapter spec: {problems}", violations=violations) from error


def _field(location: tuple[int | str, ...]) -> str:
    """Return the path below the spec; pydantic puts the method in front of it."""
    return ".".join(map(str, location[1:] if location and location[0] in METHODS else location)) or "spec"
