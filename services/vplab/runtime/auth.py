"""Bearer tokens: the lists they come from and the check of a call."""

import hashlib
import hmac
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from vplab.errors import Unauthenticated
from vplab.runtime._file_stamp import Stamp, stamp
from vplab.runtime.request import CLIENT_KEY
from vplab.runtime.settings import ServerSettings, SettingsError

_RECHECK_S: Final = 1.0
_MAX_CLIENT: Final = 512
_log = structlog.get_logger(__name__)


class Authenticator(Protocol):
    """Decides whether a call may go on."""

    def __call__(self, metadata: Mapping[str, str | bytes]) -> None:
        """Raise Unauthenticated unless the call's metadata carries valid credentials."""


class BearerTokens:
    """Accepts ``authorization: Bearer <token>`` with any of the fixed tokens or those of the file.

    The file is looked at again at most once a second. If it disappears, the tokens last read stay valid: a mount that
    fails must not lock everybody out. An empty file does lock everybody out.
    """

    def __init__(self, tokens: Iterable[str] = (), token_file: Path | None = None) -> None:
        self._fixed = [token.encode() for token in tokens]
        self._file = token_file
        self._from_file: list[bytes] = []
        self._stamp: Stamp = ()
        self._checked = time.monotonic()
        if token_file is not None:
            self._stamp = stamp([token_file])
            self._from_file = _read(token_file)

    def __call__(self, metadata: Mapping[str, str | bytes]) -> None:
        value = metadata.get("authorization")
        if not isinstance(value, str) or not value:
            raise Unauthenticated("the call needs a bearer token in its authorization metadata")
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the authorization metadata must be of the form: Bearer <token>")
        self._refresh()
        presented = token.strip().encode("utf-8", "replace")
        # Every token is compared, whatever the outcome, so that the time taken tells nothing about them.
        matches = [hmac.compare_digest(presented, known) for known in (*self._fixed, *self._from_file)]
        if not any(matches):
            raise Unauthenticated("the bearer token is not valid")

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._checked < _RECHECK_S:
            return
        self._checked = time.monotonic()
        try:
            now = stamp([self._file])
            if now != self._stamp:
                self._from_file = _read(self._file)
                self._stamp = now
                _log.info("token file read again", file=str(self._file), num_tokens=len(self._from_file))
        except OSError as error:
            _log.error(
                "token file cannot be read; the tokens known so far stay valid", file=str(self._file), error=str(error)
            )


def client_of(
    context: Any, metadata: Mapping[str, str | bytes], *, takes_tokens: bool, trusted: Collection[str] = ()
) -> str:
    """Return a name for whoever makes a call, by which the device is shared: never a secret.

    It is what the client's certificate says, else a digest of its token where tokens are checked, else its connection;
    so callers that share a certificate or a token are one client, and one who needs neither is as many as it connects.

    trusted: names of services that call for others and say for whom. Whoever is known by a connection alone is
    believed too: it could as well connect once more.
    """
    identities, value = context.peer_identities(), metadata.get("authorization")
    if identities:
        name = f"certificate:{b','.join(identities).decode('utf-8', 'replace')}"
    elif takes_tokens and isinstance(value, str):
        name = f"token:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    else:
        name, trusted = str(context.peer()), (str(context.peer()),)
    behalf = metadata.get(CLIENT_KEY)
    if name not in trusted or not isinstance(behalf, str) or len(behalf) > _MAX_CLIENT:
        return name
    return f"{name} for {behalf}"


def authenticator(settings: ServerSettings) -> Authenticator | None:
    """Return the check the settings ask for, None if calls need no token. Raises SettingsError."""
    if not settings.tokens and settings.token_file is None:
        return None
    try:
        return BearerTokens((token.get_secret_value() for token in settings.tokens), settings.token_file)
    except OSError as error:
        raise SettingsError(f"token_file: cannot read {settings.token_file}: {error.strerror}") from None


def _read(path: Path) -> list[bytes]:
    lines = (line.strip() for line in path.read_bytes().splitlines())
    return [line for line in lines if line and not line.startswith(b"#")]
