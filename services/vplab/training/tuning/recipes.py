"""How long and how fast each method is trained by default."""

from dataclasses import replace

from vplab.training.tuning.values import TuningOptions

FEW_IMAGES = 10
_DEFAULT = TuningOptions()
_LEARNING_RATES = {
    "e_peft": 2e-3,
    "e_peft_paper": 2e-3,
    "lora": 2e-3,
    "full_decoder": 1e-4,
    "ia3": 1e-2,
    "prompt_tokens": 5e-3,
}
"""Where it is not 1e-3: the whole decoder forgets at that rate, a few vectors hardly move."""
_PART_RATES = {
    "e_peft": (
        ("mask_head.", 0.5),
        ("ia3.", 5.0),
        (".gate", 5.0),
        ("prompt_tokens.", 2.5),
        ("image_context.", 0.5),
    ),
    "e_peft_paper": (("ia3.", 5.0), ("prompt_tokens.", 2.5), ("image_context.", 0.5)),
    "prompt_tokens": ((".gate", 2.0),),
}
"""Factors within a method. Each part of E-PEFT is trained at the rate that it has alone, and a gate faster than the
tokens behind it, which learn nothing while it is shut. The mask head has half of LoRA's rate: at all of it matching
lost what references had taught it, at a quarter clicks gained less."""


def recipe(method: str, num_images: int) -> TuningOptions:
    """Return the defaults of a method, by the name in its AdapterSpec, for so many images.

    More images get more steps but fewer views: the time goes with the steps of all runs, and the embedding with images
    times views.
    """
    rate = _LEARNING_RATES.get(method, _DEFAULT.learning_rate)
    options = replace(_DEFAULT, learning_rate=rate, part_rates=_PART_RATES.get(method, ()))
    if num_images <= FEW_IMAGES:
        return options
    return replace(options, num_steps=75, num_views=2, num_checks=3)
