"""Errors that name a request's field, told with the flag by which a person gave it."""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from vplab.errors import FieldViolation, InvalidInput, VPLabError

P = ParamSpec("P")
Result = TypeVar("Result")

TUNING = {
    "adapter_id": "--adapter",
    "artifact_id": "--name",
    "dataset": "--dataset",
    "segmenter": "--segmenter",
    "prompt_set": "--prompt-set",
    "method": "--method",
    "options.num_steps": "--steps",
    "options.learning_rate": "--learning-rate",
    "options.lora_rank": "--rank",
    "options.num_prompt_tokens": "--tokens",
    "options.seed": "--seed",
    "options.early_features": "--early-features",
    "promote_alias": "--promote",
    "promote_only_if_better": "--only-if-better",
}
DATASET = {"artifact_id": "--name", "dataset_id": "--name"}
PROMPT = {"prompt_set_id": "--save", "segmenter": "--segmenter", "feature_encoder": "--feature-encoder"}
SEGMENT = {"prompt_set": "PROMPT_SET", "adapter": "--adapter", "options.matcher": "--matcher"}
BUNDLE = {"bundle_id": "--name", "prompt_set": "--prompt-set", "adapter": "--adapter"}


def told_by_flags(flags: Mapping[str, str]) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Let a verb's errors name flags; flags: a field's path in the proto to what stands on the command line."""

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except VPLabError as error:
                _rename(error, flags)
                raise

        return run

    return decorate


def _rename(error: VPLabError, flags: Mapping[str, str]) -> None:
    """Change the error in place: its kind, reason and traceback stay what they are."""
    for field, flag in flags.items():
        # Where a message speaks of a field: "adapter_id: ...", "choose another adapter_id". Elsewhere the same word may
        # be a kind of artifact or a part of a name.
        error.message = re.sub(rf"(^|\banother ){re.escape(field)}(?=: |$)", rf"\g<1>{flag}", error.message)
    if isinstance(error, InvalidInput):
        error.violations = tuple(
            FieldViolation(flags.get(found.field, found.field), found.description) for found in error.violations
        )
