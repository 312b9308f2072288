"""What the command's exit code means, and which error ends with which code."""

from enum import IntEnum

from vplab import errors
from vplab.errors import VPLabError


class ExitCode(IntEnum):
    """The exit codes of every verb."""

    OK = 0
    PARTLY_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNAVAILABLE = 4
    NOT_FOUND = 5
    NOT_PERMITTED = 6
    NOT_OFFERED = 7
    INTERNAL = 8
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.PARTLY_FAILED: "done, but some images failed, or some servers do not serve",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.REFUSED: "refused: an input, a file or the state of the system does not allow it",
    ExitCode.UNAVAILABLE: "a service cannot be reached, is overloaded, or did not answer in time",
    ExitCode.NOT_FOUND: "what was named does not exist",
    ExitCode.NOT_PERMITTED: "credentials are missing or do not allow it",
    ExitCode.NOT_OFFERED: "the server, or this installation, does not offer it",
    ExitCode.INTERNAL: "a fault of a service or of this program; stored bytes that are damaged",
    ExitCode.INTERRUPTED: "interrupted; the same command goes on where it stopped",
}

_CODES: dict[type[VPLabError], ExitCode] = {
    errors.InvalidInput: ExitCode.REFUSED,
    errors.OutOfRange: ExitCode.REFUSED,
    errors.FailedPrecondition: ExitCode.REFUSED,
    errors.AlreadyExists: ExitCode.REFUSED,
    errors.Aborted: ExitCode.REFUSED,
    errors.Unavailable: ExitCode.UNAVAILABLE,
    errors.ResourceExhausted: ExitCode.UNAVAILABLE,
    errors.DeadlineExceeded: ExitCode.UNAVAILABLE,
    errors.Cancelled: ExitCode.UNAVAILABLE,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.Unauthenticated: ExitCode.NOT_PERMITTED,
    errors.PermissionDenied: ExitCode.NOT_PERMITTED,
    errors.Unimplemented: ExitCode.NOT_OFFERED,
    errors.Internal: ExitCode.INTERNAL,
    errors.Unknown: ExitCode.INTERNAL,
    errors.DataLoss: ExitCode.INTERNAL,
}


def exit_code_of(error: VPLabError) -> ExitCode:
    """Return the code for an error's kind."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), ExitCode.INTERNAL)


def table() -> str:
    """Return the codes as lines for ``--help``."""
    return "\n\n".join(f"{code.value}: {meaning}" for code, meaning in MEANINGS.items())
