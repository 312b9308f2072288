"""The failures that only this service has."""

from collections.abc import Iterator
from contextlib import contextmanager

from vplab.errors import Aborted, FailedPrecondition, InvalidInput, NotFound, OutOfRange, Unavailable, Unimplemented


class AdapterBaseMismatch(FailedPrecondition):
    """What a field of the request names was made for another segmenter."""

    default_reason = "ADAPTER_BASE_MISMATCH"

    def __init__(self, name: str, *, field: str, expected: str, actual: str) -> None:
        message = f"{field}: {name} was made for segmenter {actual[:12]}, the job is for {expected[:12]}"
        metadata = {"name": name, "field": field, "expected": expected, "actual": actual}
        # Who looks for the adapter at fault must not find a prompt set there.
        super().__init__(message, metadata=metadata if field == "prompt_set" else {"adapter": name} | metadata)


class OtherVersion(FailedPrecondition):
    """A name means another version than the one whose digest the request tells."""

    default_reason = "MODEL_MISMATCH"

    def __init__(self, name: str, *, field: str, expected: str, actual: str) -> None:
        message = f"{field}: {name} has digest {actual[:12]}, the request is for {expected[:12]}"
        super().__init__(message, metadata={"name": name, "field": field, "expected": expected, "actual": actual})


class TrainerMissing(Unimplemented):
    """This installation cannot train."""

    def __init__(self, missing: str) -> None:
        super().__init__(
            f"this server cannot train: {missing} is not installed; install vplab[training], or set "
            "VPLAB_TRAINING_TRAINS=false where other servers share its queue"
        )


class NoSuchJob(NotFound):
    """There is no job of that name."""

    def __init__(self, name: str) -> None:
        super().__init__("There is no such job", metadata={"name": name})


class SequenceOutOfRange(OutOfRange):
    """A watch asked to go on from an event that was not there yet."""

    def __init__(self, asked: int, last: int) -> None:
        super().__init__(f"the job has {last} events, not {asked}", metadata={"offset": str(last)})


class LeaseLost(Aborted):
    """The job was cancelled, or another trainer took it: what this one does no longer counts."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} is no longer this trainer's")


class WorkerDied(Unavailable):
    """The process that worked on a job ended, or said nothing for too long and was ended."""


class ModelUnsupported(FailedPrecondition):
    """A version is not what it was named for."""

    default_reason = "MODEL_UNSUPPORTED"

    def __init__(self, name: str, role: str, why: str) -> None:
        super().__init__(f"{name} cannot be used as {role}: {why}", metadata={"name": name})


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Have NotFound and FailedPrecondition of the block name the request's field, as InvalidInput does by itself."""
    try:
        yield
    except (NotFound, FailedPrecondition) as error:
        error.metadata = {**error.metadata, "field": field}
        error.message = f"{field}: {error.message}"
        raise


def at_file(error: InvalidInput, file_name: str, field: str) -> InvalidInput:
    """Return an image's or mask's error with its place in the request and the file a person knows."""
    return InvalidInput(
        f"{file_name}: {error.message}",
        field=field,
        reason=error.reason,
        metadata={**error.metadata, "file": file_name},
    )
