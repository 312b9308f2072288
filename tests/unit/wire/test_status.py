"""The error table is total in both directions, and what it sends fits into gRPC's trailers."""

import grpc
import pytest
from google.rpc import status_pb2

from vplab import errors
from vplab.errors import FieldViolation, InvalidInput, VPLabError
from vplab.wire import status

KINDS = sorted(VPLabError.__subclasses__(), key=lambda kind: kind.__name__)
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def received(error: VPLabError) -> VPLabError:
    return status.error_from_call(status.code_of(error), error.message, status.trailers_from_error(error))


def test_every_kind_has_one_code_and_every_code_one_kind():
    assert set(status.KIND_TO_CODE) == set(KINDS)
    assert set(status.CODE_TO_KIND) == set(CODES)
    assert len(KINDS) == len(CODES) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_default_reason_of_a_kind_is_in_the_contract(kind):
    assert kind.default_reason in status.REASONS


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_survives_the_wire_with_reason_message_and_metadata(kind):
    error = received(kind("the why", metadata={"name": "artifacts/scratch"}))
    assert type(error) is kind
    assert (error.message, error.reason, error.metadata) == (
        "the why",
        kind.default_reason,
        {"name": "artifacts/scratch"},
    )


@pytest.mark.parametrize("code", CODES)
def test_a_code_without_details_becomes_its_kind_with_the_default_reason(code):
    error = status.error_from_call(code, "from a proxy", None)
    assert type(error) is status.CODE_TO_KIND[code]
    assert (error.message, error.reason) == ("from a proxy", type(error).default_reason)


def test_a_subclass_takes_the_code_of_its_kind():
    class VersionNotFound(errors.NotFound):
        pass

    assert status.code_of(VersionNotFound("no")) is grpc.StatusCode.NOT_FOUND


def test_an_error_without_a_kind_is_unknown():
    error = received(VPLabError("something"))
    assert (type(error), error.reason) == (errors.Unknown, "UNKNOWN")


def test_a_reason_outside_the_contract_is_replaced_by_the_default():
    assert received(errors.NotFound("no", reason="MADE_UP")).reason == "RESOURCE_NOT_FOUND"


def test_field_violations_survive_the_wire():
    violations = (FieldViolation("prompts[2].box", "is empty"), FieldViolation("image", "is missing"))
    error = received(InvalidInput("two fields are wrong", violations=violations))
    assert isinstance(error, InvalidInput)
    assert error.violations == violations


def test_retry_time_travels_as_detail_and_as_pushback():
    trailers = dict(status.trailers_from_error(errors.ResourceExhausted("full", retry_after_s=0.25)))
    assert trailers[status.PUSHBACK_KEY] == "250"
    assert received(errors.ResourceExhausted("full", retry_after_s=0.25)).retry_after_s == pytest.approx(0.25)


def test_pushback_alone_gives_the_retry_time():
    error = status.error_from_call(grpc.StatusCode.UNAVAILABLE, "busy", [(status.PUSHBACK_KEY, "1500")])
    assert error.retry_after_s == pytest.approx(1.5)


@pytest.mark.parametrize("value", ["-1", "soon", "", "²"])
def test_a_negative_or_unreadable_pushback_gives_no_retry_time(value):
    assert status.error_from_call(grpc.StatusCode.UNAVAILABLE, "", [(status.PUSHBACK_KEY, value)]).retry_after_s is None


def test_no_retry_time_sends_no_pushback():
    assert [key for key, _ in status.trailers_from_error(errors.NotFound("no"))] == [status.DETAILS_KEY]


def test_a_message_refused_by_grpc_itself_is_message_too_large():
    text = "SERVER: Received message larger than max (5 vs. 4)"
    assert status.error_from_call(grpc.StatusCode.RESOURCE_EXHAUSTED, text, None).reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("packed", [b"\xff\xff", status_pb2.Status(code=5, message="other").SerializeToString()])
def test_unreadable_details_or_details_of_another_code_are_ignored(packed):
    error = status.error_from_call(grpc.StatusCode.UNAVAILABLE, "down", [(status.DETAILS_KEY, packed)])
    assert (type(error), error.message) == (errors.Unavailable, "down")


def test_a_code_number_that_grpc_does_not_have_is_unknown():
    assert type(status.error_from_status(status_pb2.Status(code=99, message="?"))) is errors.Unknown


def test_a_huge_error_is_cut_to_fit_the_trailers():
    many = [FieldViolation(f"images[{i}]" + "é" * 500, "ö" * 5000) for i in range(500)]
    error = InvalidInput("ü" * 9000, violations=many, metadata={f"k{i}": "x" * 9000 for i in range(50)})
    trailers = status.trailers_from_error(error)
    assert sum(len(value) * 4 / 3 for _, value in trailers) < 5500
    assert isinstance(again := received(error), InvalidInput)
    assert again.violations


def test_text_that_is_not_unicode_does_not_break_the_error_path():
    assert received(errors.NotFound("file \udcff", metadata={"name": "\udcff"})).metadata == {"name": "?"}
