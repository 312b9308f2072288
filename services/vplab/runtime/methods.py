"""What a gRPC method is called and which of the four kinds it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool


@dataclass(frozen=True)
class Method:
    """One method of one service."""

    service: str
    """Full name, such as ``vplab.api.registry.v1.RegistryService``."""
    name: str
    """Name in its service, such as ``GetVersion``."""
    kind: str
    """``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``."""

    @property
    def labels(self) -> tuple[str, str, str]:
        """The values of the call series' labels."""
        return self.kind, self.service, self.name

    @property
    def is_watch(self) -> bool:
        """Whether the call lasts until its caller has seen enough; ours and gRPC's such methods are named so."""
        return self.name.startswith("Watch") and self.kind == "server_stream"


# Names that callers make up must not become label values.
UNKNOWN = Method("unknown", "unknown", "unary")


def method_of(path: str, handler: Any) -> Method:
    """Return the method of a path like ``/package.Service/Name`` and its handler."""
    service, _, name = path.lstrip("/").rpartition("/")
    return Method(service, name, _kind(handler.request_streaming, handler.response_streaming))


def methods_of(services: Iterable[str]) -> list[Method]:
    """Return the methods of services by their descriptors; a service without a known descriptor has none."""
    methods = []
    for service in services:
        try:
            descriptor = descriptor_pool.Default().FindServiceByName(service)
        except KeyError:
            continue
        methods += [Method(service, m.name, _kind(m.client_streaming, m.server_streaming)) for m in descriptor.methods]
    return methods


def _kind(is_request_stream: bool, is_response_stream: bool) -> str:
    if is_request_stream:
        return "bidi_stream" if is_response_stream else "client_stream"
    return "server_stream" if is_response_stream else "unary"
