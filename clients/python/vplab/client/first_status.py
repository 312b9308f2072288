"""What a server answered to a call that was still being written to."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

Value = TypeVar("Value")


class FirstStatus:
    """The status of a call with a request stream, as the server sent it.

    A server may end such a call while the caller still writes. That write fails, and ``grpc.aio`` then replaces the
    status that came, OK too, by INTERNAL, "Internal error from Core". Callbacks are called with the one that came.
    Remove this with the first grpcio that mends https://github.com/grpc/grpc/issues/36066.
    """

    def __init__(self, call: Any) -> None:
        """Listen to a call that has just begun."""
        self.error: grpc.aio.AioRpcError | None = None
        """What the server refused the call with; None while it has not ended, and where it ended well."""
        self.is_ok = False
        """Whether the call has ended well."""
        call.add_done_callback(self._keep)

    def _keep(self, call: Any) -> None:
        code = _result(call.code())
        self.is_ok = code is grpc.StatusCode.OK
        if not self.is_ok:
            trailers = _result(call.trailing_metadata()) or grpc.aio.Metadata()
            self.error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, _result(call.details()), None)


def _result(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Return what a coroutine gives that has nothing to wait for, as a call's status once it is done."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a call was called done before its status was known")
