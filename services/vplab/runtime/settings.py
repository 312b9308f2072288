"""The settings every service shares, read from the environment; the one list of the frame's variables.

A service subclasses ``ServerSettings`` in its ``config.py`` with its own prefix::

    class RegistryConfig(ServerSettings, env_prefix="VPLAB_REGISTRY_"):
        listen: str = "127.0.0.1:7301"

The field ``log_level`` is then read from ``VPLAB_REGISTRY_LOG_LEVEL``, else from ``VPLAB_LOG_LEVEL``: what all services
of a machine have in common (logs, limits, TLS, tokens, traces) can be said once. Addresses and ports cannot.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as _ParseError,
)

from vplab.errors import InvalidInput
from vplab.wire.unix_sockets import SCHEME, unix_path

MIB: Final = 1024 * 1024
SHARED_PREFIX: Final = "VPLAB_"

# Kubernetes sets <SERVICE>_PORT, <SERVICE>_SERVICE_HOST and the like for each Service of the namespace.
_KUBERNETES_NAME: Final = re.compile(r".*_(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^:\[\]/\s]+):(\d{1,5})")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SettingsError(Exception):
    """A variable of the environment is wrong; the message names each one."""


def home() -> Path:
    """Return the folder of a service's data when nothing else is said: ``VPLAB_HOME``, else the user's data folder."""
    return Path(os.environ.get("VPLAB_HOME") or "~/.local/share/vplab").expanduser().absolute()


class ServerSettings(BaseSettings):
    """What a server can be told from outside; ``none`` unsets a setting that may be unset."""

    model_config = SettingsConfigDict(
        env_prefix=SHARED_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, env_parse_none_str="none"
    )

    listen: str = "127.0.0.1:0"
    """``host:port`` or ``unix:/path``. Port 0 takes a free one. The default of every service is the loopback interface,
    because without tokens or client certificates whoever can connect may do everything."""
    unix_socket: Path | None = None
    """A unix socket to listen on beside ``listen``, for callers on this machine. Only the user who serves can connect;
    tokens and TLS hold there as they do on ``listen``."""
    health_listen: str | None = None
    """A second address, ``host:port``, that answers only ``grpc.health.v1`` and in plain text: Kubernetes' gRPC probes
    cannot present a client certificate."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of ``GET /metrics``; 0 takes a free one, unset opens none."""
    metrics_host: str = "127.0.0.1"
    """Interface of the metrics port; ``0.0.0.0`` in a container."""

    max_receive_bytes: Annotated[int, Field(ge=1024, le=512 * MIB)] = 32 * MIB
    """Largest request message. gRPC's default of 4 MiB is exactly one float32 SAM embedding, which then fails."""
    max_send_bytes: Annotated[int, Field(ge=1024, le=512 * MIB)] = 32 * MIB
    """Largest response message."""
    max_concurrent_streams: Annotated[int, Field(ge=1)] = 1024
    """Calls at a time on one connection; further ones wait in the client."""
    max_calls_in_flight: Annotated[int, Field(ge=1)] = 512
    """Calls at a time on the whole server, streams included; further ones are refused (RESOURCE_EXHAUSTED). It
    bounds the memory that requests hold; health is not counted."""
    default_deadline_s: Seconds | None = 60.0
    """Deadline of unary calls that come without one; ``none`` for no default. Streams have none but the client's."""

    keepalive_time_s: Seconds = 60.0
    """Silence after which the server pings a client."""
    keepalive_timeout_s: Seconds = 20.0
    """Wait for the answer to a ping before the connection is dropped."""
    min_client_ping_interval_s: Seconds = 10.0
    """Clients that ping more often than this, three times over, are disconnected (GOAWAY too_many_pings)."""
    max_connection_age_s: Seconds = 900.0
    """Age at which a connection is renewed, so that long-lived clients find new replicas; gRPC varies it by +-10 %."""
    max_connection_age_grace_s: Seconds = 300.0
    """Time that calls on such a connection get to end; a longer stream is cut then and must reconnect."""

    drain_delay_s: SecondsOrZero = 0.0
    """Time between NOT_SERVING and the refusal of new calls, for load balancers to notice: 5 in Kubernetes
    without a preStop hook."""
    drain_grace_s: SecondsOrZero = 25.0
    """Time that calls in flight get after SIGTERM. With drain_delay_s below Kubernetes' 30 s until SIGKILL."""

    enable_reflection: bool = True
    """Whether ``grpc.reflection`` tells the contract to anyone who may connect."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """``auto`` is console on a terminal and JSON lines elsewhere."""

    tls_certificate: Path | None = None
    """PEM file with the server's certificate chain. Read again for each new connection once it changed."""
    tls_key: Path | None = None
    """PEM file with its private key."""
    tls_client_ca: Path | None = None
    """PEM file with the authorities of client certificates; when set, clients must present one (mutual TLS)."""
    tokens: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Accepted bearer tokens, separated by commas. Prefer ``token_file``, which can change while the server runs."""
    token_file: Path | None = None
    """File with one accepted bearer token a line; blank lines and lines that begin with # are left out. Read again
    within a second of a change. With neither this nor ``tokens`` calls need no token."""
    trusted_clients: tuple[str, ...] = ()
    """Services that share the device on behalf of their own callers, a JSON list of ``certificate:<name>`` (of the
    client certificate) and ``token:<digits>`` (the first 16 hex digits of sha256 of ``Bearer <token>``). Whoever else
    shows a certificate or a token is one client."""

    otlp_endpoint: str | None = None
    """``http://host:4317`` of an OpenTelemetry collector; unset makes no traces. Needs the ``tracing`` extra."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the calls that are traced when the caller has not decided."""

    per_service: ClassVar[frozenset[str]] = frozenset({"listen", "unix_socket", "health_listen", "metrics_port"})
    """Fields without a shared ``VPLAB_*`` variable, since two services on a machine cannot have them in common."""

    def __init_subclass__(cls, env_prefix: str | None = None, **options: Any) -> None:
        if env_prefix is not None:
            cls.model_config = {**cls.model_config, "env_prefix": env_prefix}
        super().__init_subclass__(**options)

    @field_validator("listen", "health_listen")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is None:
            return value
        try:
            if value != SCHEME and unix_path(value, field="listen") is not None:
                return value
        except InvalidInput as error:
            raise ValueError(error.message) from error
        match = _ADDRESS.fullmatch(value)
        if match is None or int(match.group(1)) > 65535:
            raise ValueError("must be host:port, [ipv6]:port or unix:/path")
        return value

    @field_validator("unix_socket")
    @classmethod
    def _check_socket(cls, value: Path | None) -> Path | None:
        if value is not None:
            cls._check_address(f"unix:{value}")
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _split_tokens(cls, value: object) -> object:
        return tuple(token.strip() for token in value.split(",")) if isinstance(value, str) else value

    @field_validator("tokens")
    @classmethod
    def _check_tokens(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(token.get_secret_value() for token in value):
            raise ValueError("must not hold an empty token")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must be http://host:port or https://host:port")
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the service's variables, then the shared ones."""
        return init_settings, env_settings, _SharedVariables(settings_cls, env_prefix=SHARED_PREFIX)

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return each variable this class reads and the field it sets; the service's own name comes first."""
        own = str(cls.model_config.get("env_prefix", ""))
        names = {f"{own}{field}".upper(): field for field in cls.model_fields}
        return names | {f"{SHARED_PREFIX}{field}".upper(): field for field in _shared_fields(cls)}


class _SharedVariables(EnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        shared = _shared_fields(self.settings_cls)
        return {name: value for name, value in super().__call__().items() if name in shared}


def _shared_fields(cls: type[BaseSettings]) -> frozenset[str]:
    return frozenset(ServerSettings.model_fields) - ServerSettings.per_service


Settings = TypeVar("Settings", bound=ServerSettings)


def load_settings(cls: type[Settings], **overrides: Any) -> Settings:
    """Read the settings of a service; ``overrides`` win over the environment.

    Raises SettingsError with one line for each variable at fault.
    """
    try:
        return cls(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(cls, error, overrides))) from None
    except _ParseError as error:  # a list or mapping that is no JSON
        field = re.search(r'field "(\w+)"', str(error))
        name = _variable(cls, field.group(1)) if field else f"{cls.model_config.get('env_prefix')}*"
        raise SettingsError(f"{name}: must be JSON") from None


def unknown_variables(cls: type[ServerSettings], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable with the service's prefix that nothing reads: a typing mistake."""
    known = cls.variables()
    prefix = str(cls.model_config.get("env_prefix", ""))
    sentences = []
    for name in sorted(environment):
        if prefix == SHARED_PREFIX or not name.startswith(prefix) or name in known or _KUBERNETES_NAME.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        sentences.append(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return sentences


def _lines(cls: type[ServerSettings], error: ValidationError, overrides: Mapping[str, Any]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else "*"
        name = field if field in overrides else _variable(cls, field)
        lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
    return lines


def _variable(cls: type[ServerSettings], field: str) -> str:
    """Return the variable that a field was read from: the shared one only where the service's own is not set."""
    own = f"{cls.model_config.get('env_prefix', '')}{field}".upper()
    shared = f"{SHARED_PREFIX}{field}".upper()
    is_shared = own not in os.environ and shared in os.environ and field in _shared_fields(cls)
    return shared if is_shared else own
