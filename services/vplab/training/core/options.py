"""What each method can be told: every default filled in, and what it has no use for refused."""

from dataclasses import replace
from typing import Final, TypeVar

from pydantic import BaseModel

from vplab.errors import InvalidInput
from vplab.training.tuning.values import TuningOptions as Recipe
from vplab.training.values import TuningMethod, TuningOptions
from vplab.vision.adapters.spec import (
    METHODS,
    AdapterSpec,
    EPeftSpec,
    HqTokenSpec,
    PromptTokensSpec,
    default_spec,
)

Spec = TypeVar("Spec", bound=BaseModel)

_SEQUENCES: Final = 5
"""Two for the prompts' sequence and three for the image's, over which prompt tokens are spread."""


def filled_in(method: TuningMethod, options: TuningOptions, num_images: int) -> TuningOptions:
    """Return options with the method's defaults; what the method does not have stays None.

    Raises InvalidInput for a method that cannot be trained here, and for an option that it has no use for.
    """
    spec = _default(method)
    recipe = Recipe.for_method(method, num_images)
    rank, num_tokens = _lora_rank(spec), _num_prompt_tokens(spec)
    fuses = True if isinstance(spec, HqTokenSpec) else None
    for name, default in (("lora_rank", rank), ("num_prompt_tokens", num_tokens), ("early_features", fuses)):
        if default is None and getattr(options, name) is not None:
            raise InvalidInput(f"{method} has no {name}", field=f"options.{name}")
    return TuningOptions(
        num_steps=options.num_steps or recipe.num_steps,
        learning_rate=options.learning_rate or recipe.learning_rate,
        lora_rank=options.lora_rank or rank,
        num_prompt_tokens=options.num_prompt_tokens or num_tokens,
        seed=options.seed or 0,
        early_features=options.early_features,
    )


def with_early_features(options: TuningOptions, channels: int | None) -> TuningOptions:
    """Return the options of HQ_TOKEN with ``early_features`` settled: fused where there are any, unless told otherwise.

    channels: of the early feature that the segmenter's image encoder gives, or None.
    Raises InvalidInput (field ``options.early_features``) where they are asked for and there are none.
    """
    if options.early_features and channels is None:
        raise InvalidInput(
            "the segmenter's image encoder gives no early features; take one that was imported with them",
            field="options.early_features",
        )
    return replace(options, early_features=options.early_features is not False and channels is not None)


def adapter_spec(method: TuningMethod, options: TuningOptions, early_channels: int | None = None) -> AdapterSpec:
    """Return the adapter that filled-in options describe. early_channels: what the image encoder gives, or None.

    Raises InvalidInput.
    """
    spec = _default(method)
    if isinstance(spec, HqTokenSpec):
        if not options.early_features:
            return spec
        with_early_features(options, early_channels)
        return spec.model_copy(update={"early_channels": early_channels})
    if isinstance(spec, EPeftSpec):
        return spec.model_copy(
            update={
                "lora": None if spec.lora is None else _with_rank(spec.lora, options),
                "prompt_tokens": None if spec.prompt_tokens is None else _with_tokens(spec.prompt_tokens, options),
            }
        )
    if isinstance(spec, PromptTokensSpec):
        return _with_tokens(spec, options)
    return _with_rank(spec, options)


def recipe(method: TuningMethod, options: TuningOptions, num_images: int) -> Recipe:
    """Return how the trainer shall train."""
    defaults = Recipe.for_method(method, num_images)
    num_steps = options.num_steps or defaults.num_steps
    return replace(
        defaults,
        num_steps=num_steps,
        learning_rate=options.learning_rate or defaults.learning_rate,
        warmup_steps=min(defaults.warmup_steps, num_steps // 2),
        seed=options.seed or 0,
    )


def _default(method: TuningMethod) -> AdapterSpec:
    if method not in METHODS:
        raise InvalidInput(f"this server cannot tune with {method}; it can with {', '.join(METHODS)}", field="method")
    return default_spec(method)


def _lora_rank(spec: AdapterSpec) -> int | None:
    lora = spec.lora if isinstance(spec, EPeftSpec) else spec
    rank = getattr(lora, "rank", None)
    return int(rank) if rank is not None else None


def _num_prompt_tokens(spec: AdapterSpec) -> int | None:
    tokens = spec.prompt_tokens if isinstance(spec, EPeftSpec) else spec
    if not isinstance(tokens, PromptTokensSpec):
        return None
    return sum(tokens.query_tokens) + sum(tokens.image_tokens)


def _with_rank(spec: Spec, options: TuningOptions) -> Spec:
    """Change the rank of a method that has one; alpha follows, so that the update's scale, alpha / rank, stays."""
    rank, default = options.lora_rank, getattr(spec, "rank", None)
    if rank is None or default is None:
        return spec
    return spec.model_copy(update={"rank": rank, "alpha": spec.alpha / default * rank})  # type: ignore[attr-defined]


def _with_tokens(tokens: PromptTokensSpec, options: TuningOptions) -> PromptTokensSpec:
    """Spread tokens evenly over the five sequences, the first ones getting one more where it does not come out even."""
    total = options.num_prompt_tokens
    if total is None or total == _num_prompt_tokens(tokens):
        return tokens
    counts = tuple(total // _SEQUENCES + (index < total % _SEQUENCES) for index in range(_SEQUENCES))
    return tokens.model_copy(update={"query_tokens": counts[:2], "image_tokens": counts[2:]})
