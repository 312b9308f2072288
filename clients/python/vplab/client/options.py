"""What a client can be told: where the services are, how to reach them, and how long to wait."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vplab.errors import InvalidInput

Area = Literal["registry", "embedding", "segmentation", "training"]
AREAS: tuple[Area, ...] = ("registry", "embedding", "segmentation", "training")

Priority = Literal["interactive", "inline", "batch"]

MAX_MESSAGE_BYTES = 32 << 20
"""What every server of ours takes and sends; gRPC's own default of 4 MiB is less than one SAM embedding."""


@dataclass(frozen=True)
class TlsOptions:
    """Transport security; the default trusts the system's certificates and shows none of its own."""

    ca_file: Path | None = None
    """PEM file with the authorities to trust instead of the system's."""
    cert_file: Path | None = None
    """PEM file with this client's certificate chain, for mutual TLS; goes with ``key_file``."""
    key_file: Path | None = None
    """PEM file with the key of ``cert_file``."""
    server_name: str | None = None
    """Name expected in the server's certificate, where it differs from the address."""


@dataclass(frozen=True)
class ClientOptions:
    """How to reach the services; the defaults suit a service on the same network."""

    tls: TlsOptions | None = None
    """None talks in the clear: to this machine, or inside a mesh that encrypts by itself."""
    bearer_token: str | None = field(default=None, repr=False)
    """Sent as ``authorization: Bearer ...`` with every call."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Further headers of every call."""
    timeout_s: float | None = None
    """Deadline of every call; None leaves each method its own default."""
    request_id: Callable[[], str] | None = None
    """Gives the id of the call in progress, so that a service's calls can be found under its caller's id."""
    client: Callable[[], str] | None = None
    """Gives the name of whoever a service makes its calls for, so that devices are shared between those."""
    priority: Priority | Callable[[], str] | None = None
    """How urgent the calls are: less than their methods promise, never more. ``inline`` is a machine with a cycle time,
    ``batch`` what nobody waits for, and which waits while others keep the devices busy. A service gives a function that
    tells the class of the call in progress."""
    time_remaining_s: Callable[[], float | None] | None = None
    """Gives the seconds that the caller still waits; no call outlives them."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message, both ways."""
    keepalive_time_s: float = 30.0
    """Idle time after which a ping asks whether the connection still lives; servers permit one every 10 s."""
    keepalive_timeout_s: float = 10.0
    """How long the answer to that ping may take."""

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "ClientOptions":
        """Read VPLAB_TOKEN, VPLAB_TLS_CA_FILE, VPLAB_TLS_CERT_FILE, VPLAB_TLS_KEY_FILE and VPLAB_TLS_SERVER_NAME."""
        files = {key: environment.get(f"VPLAB_TLS_{key}_FILE") for key in ("CA", "CERT", "KEY")}
        server_name = environment.get("VPLAB_TLS_SERVER_NAME") or None
        tls = None
        if any(files.values()) or server_name:
            ca, cert, key = (Path(text) if text else None for text in files.values())
            tls = TlsOptions(ca, cert, key, server_name)
        return ClientOptions(tls=tls, bearer_token=environment.get("VPLAB_TOKEN") or None)


def resolve_addresses(
    addresses: Mapping[Area, str | None], shared: str | None, environment: Mapping[str, str] = os.environ
) -> dict[Area, str]:
    """Return the address of each area that has one.

    An area's own address comes first, then ``shared``, then VPLAB_<AREA>_ADDRESS, then VPLAB_ADDRESS.
    """
    found: dict[Area, str] = {}
    for area in AREAS:
        candidates = (
            addresses.get(area),
            shared,
            environment.get(f"VPLAB_{area.upper()}_ADDRESS"),
            environment.get("VPLAB_ADDRESS"),
        )
        address = next((candidate for candidate in candidates if candidate), None)
        if address is not None:
            found[area] = address
    return found


def missing_address(area: str) -> InvalidInput:
    """Return the error for an area that nobody named an address for."""
    return InvalidInput(
        f"no address of the {area} service: pass {area}=... or set VPLAB_{area.upper()}_ADDRESS", field=area
    )
