import pytest

from vplab.cli.field_flags import TUNING, told_by_flags
from vplab.errors import FailedPrecondition, InvalidInput, NotFound, VPLabError


def told(error: VPLabError) -> VPLabError:
    @told_by_flags(TUNING)
    def verb() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        verb()
    return caught.value


def test_a_field_is_told_as_the_flag_that_gave_it() -> None:
    error = told(InvalidInput("must be below 1", field="options.learning_rate"))
    assert isinstance(error, InvalidInput)
    assert [v.field for v in error.violations] == ["--learning-rate"]
    assert told(NotFound("prompt_set: artifacts/none does not exist")).message.startswith(
        "--prompt-set: artifacts/none"
    )
    kind = FailedPrecondition("artifacts/scratches holds prompt_set versions; choose another adapter_id")
    assert told(kind).message == "artifacts/scratches holds prompt_set versions; choose another --adapter"


def test_what_is_no_field_stays() -> None:
    error = told(InvalidInput("is damaged", field="images/method.png"))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "images/method.png"
