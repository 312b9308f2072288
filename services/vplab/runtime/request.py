"""What the call in progress knows about itself: its id, its deadline, who calls, and how urgent it is.

The frame sets these for the task that runs the handler, and tasks started by the handler inherit them. Work handed to
a ``DeviceQueue`` or a thread must be given what it needs explicitly.
"""

import re
import time
import uuid
from contextvars import ContextVar
from typing import Final

from vplab.runtime.device_queue import Priority

REQUEST_ID_KEY: Final = "x-request-id"
CLIENT_KEY: Final = "x-vplab-client"
"""On whose behalf a service calls, as ``client`` told it."""
PRIORITY_KEY: Final = "x-vplab-priority"
"""How urgent a call is: ``interactive``, ``inline`` or ``batch``."""

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_PRIORITIES: Final = {priority.name.lower(): priority for priority in Priority}

_request_id: ContextVar[str] = ContextVar("vplab_request_id", default="")
_deadline: ContextVar[float | None] = ContextVar("vplab_deadline", default=None)
_client: ContextVar[str] = ContextVar("vplab_client", default="")
_priority: ContextVar[Priority] = ContextVar("vplab_priority", default=Priority.INTERACTIVE)


def request_id() -> str:
    """Return the id of the call in progress, empty outside of a call."""
    return _request_id.get()


def deadline() -> float | None:
    """Return when the caller stops waiting, on ``time.monotonic()``'s clock in seconds; None when it never does."""
    return _deadline.get()


def client() -> str:
    """Return who calls, for sharing what is scarce: a verified name where there is one, else the connection."""
    return _client.get()


def priority() -> Priority:
    """Return the class of the call in progress, the most urgent one outside of a call."""
    return _priority.get()


def priority_to_pass_on() -> str:
    """Return what the services that this one calls are told; empty where there is nothing to lower."""
    known = _priority.get()
    return "" if known is Priority.INTERACTIVE else known.name.lower()


def take_priority(own: Priority) -> Priority:
    """Settle the class of the call in progress, and return it: its method's own, or the lower one its caller asked for.

    Nobody has to be trusted for that: an answer can be had later than the method promises, never sooner.
    """
    taken = max(own, _priority.get())
    _priority.set(taken)
    return taken


def time_remaining_s() -> float | None:
    """Return the seconds until the deadline, not below zero; None without a deadline."""
    at = _deadline.get()
    return None if at is None else max(0.0, at - time.monotonic())


def accept_request_id(proposed: str | None) -> str:
    """Return the caller's id if it is safe to write into logs and metadata, else a new one."""
    if proposed is not None and _SANE_REQUEST_ID.fullmatch(proposed):
        return proposed
    return uuid.uuid4().hex


def accept_priority(proposed: object) -> Priority:
    """Return the class a caller asks for; what is no class's name asks for none, as in a call to an older server."""
    return _PRIORITIES.get(proposed, Priority.INTERACTIVE) if isinstance(proposed, str) else Priority.INTERACTIVE


def enter(request_id: str, deadline: float | None, client: str = "", priority: Priority = Priority.INTERACTIVE) -> None:
    """Set them for the task that runs a handler; there is nothing to reset, because each call has its own task."""
    _request_id.set(request_id)
    _deadline.set(deadline)
    _client.set(client)
    _priority.set(priority)
