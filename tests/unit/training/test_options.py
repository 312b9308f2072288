"""Defaults of methods, and the adapters that options describe."""

import pytest

from vplab.errors import InvalidInput
from vplab.training.core.options import adapter_spec, filled_in, recipe, with_early_features
from vplab.training.core.tuning_jobs import dataset_id
from vplab.training.values import TuningMethod, TuningOptions
from vplab.vision.adapters.spec import METHODS, EPeftSpec, HqTokenSpec, LoraSpec, PromptTokensSpec, default_spec


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_can_be_trained_has_defaults(method: str) -> None:
    options = filled_in(TuningMethod(method), TuningOptions(), num_images=5)
    assert options.num_steps
    assert options.learning_rate
    assert options.seed == 0
    assert adapter_spec(TuningMethod(method), options) == default_spec(method)
    assert recipe(TuningMethod(method), options, 5).num_steps == options.num_steps


def test_filling_in_again_changes_nothing() -> None:
    options = filled_in(TuningMethod.E_PEFT, TuningOptions(lora_rank=4, seed=9), num_images=5)
    assert filled_in(TuningMethod.E_PEFT, options, num_images=5) == options


@pytest.mark.parametrize("name", ["lora_rank", "num_prompt_tokens"])
def test_options_that_a_method_has_no_use_for_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        filled_in(TuningMethod.IA3, TuningOptions(**{name: 4}), num_images=5)
    assert refused.value.violations[0].field == f"options.{name}"


def test_rank_and_tokens_reach_the_adapter() -> None:
    ensemble = adapter_spec(TuningMethod.E_PEFT, TuningOptions(lora_rank=4, num_prompt_tokens=12))
    assert isinstance(ensemble, EPeftSpec)
    assert ensemble.lora is not None
    assert (ensemble.lora.rank, ensemble.lora.alpha) == (4, 4.0)
    assert ensemble.prompt_tokens is not None
    assert (ensemble.prompt_tokens.query_tokens, ensemble.prompt_tokens.image_tokens) == ((3, 3), (2, 2, 2))
    lora = adapter_spec(TuningMethod.LORA, TuningOptions(lora_rank=16))
    assert isinstance(lora, LoraSpec)
    assert lora.alpha / lora.rank == LoraSpec().alpha / LoraSpec().rank
    tokens = adapter_spec(TuningMethod.PROMPT_TOKENS, TuningOptions(num_prompt_tokens=50))
    assert tokens == PromptTokensSpec()


@pytest.mark.parametrize("adapter_id", ["a", "x" * 63, "scratch-" + "y" * 50])
def test_data_sent_along_gets_an_id_that_the_registry_takes(adapter_id: str) -> None:
    from vplab.wire.names import parse_artifact_id

    assert parse_artifact_id(dataset_id(adapter_id), field="dataset_id").endswith("-data")


@pytest.mark.parametrize(
    ("asked", "channels", "fuses"),
    [(None, 96, True), (None, None, False), (True, 96, True), (False, 96, False), (False, None, False)],
)
def test_early_features_are_fused_where_there_are_any_unless_told_otherwise(
    asked: bool | None, channels: int | None, fuses: bool
) -> None:
    options = with_early_features(TuningOptions(early_features=asked), channels)
    assert options.early_features is fuses
    spec = adapter_spec(TuningMethod.HQ_TOKEN, options, channels)
    assert spec == HqTokenSpec(early_channels=channels if fuses else None)


def test_early_features_that_are_not_there_or_of_no_use_are_refused_with_their_field() -> None:
    asked = TuningOptions(early_features=True)
    for refused in (
        lambda: with_early_features(asked, None),
        lambda: adapter_spec(TuningMethod.HQ_TOKEN, asked, None),
        lambda: filled_in(TuningMethod.LORA, asked, num_images=5),
        lambda: filled_in(TuningMethod.E_PEFT, TuningOptions(early_features=False), num_images=5),
    ):
        with pytest.raises(InvalidInput) as caught:
            refused()
        assert caught.value.violations[0].field == "options.early_features"


def test_a_plan_of_an_older_release_trains_without_early_features() -> None:
    assert adapter_spec(TuningMethod.HQ_TOKEN, TuningOptions(), 96) == HqTokenSpec()
