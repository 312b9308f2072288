"""Opening a channel with the published service config, keepalive, message limits and credentials."""

from importlib import resources
from pathlib import Path

import grpc
import grpc.aio

from vplab.client.options import Area, ClientOptions, TlsOptions
from vplab.errors import InvalidInput
from vplab.wire.unix_sockets import unix_path

_USER_AGENT = "vplab-python"


def service_config(area: Area) -> str:
    """Return the gRPC service config of an area, as JSON: the same file that clients of other languages load."""
    return resources.files("vplab.client").joinpath("service_config", f"{area}.json").read_text(encoding="utf-8")


def open_channel(area: Area, address: str, options: ClientOptions) -> grpc.aio.Channel:
    """Open a channel; nothing connects before the first call.

    address: ``host:port``, ``unix:/path``, or any target that gRPC resolves, such as ``dns:///host:port``.
    Raises InvalidInput for a certificate or key that cannot be read, or a socket whose path is too long.
    """
    unix_path(address, field=area)
    arguments = [
        ("grpc.service_config", service_config(area)),
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", round(options.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # The retries of a call last about three seconds: a server that is back within them is found again, not after
        # the two minutes that gRPC may wait by itself.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.primary_user_agent", _USER_AGENT),
    ]
    if options.tls is None:
        return grpc.aio.insecure_channel(address, options=arguments)
    if options.tls.server_name:
        arguments.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return grpc.aio.secure_channel(address, _credentials(options.tls), options=arguments)


def _credentials(tls: TlsOptions) -> grpc.ChannelCredentials:
    if (tls.cert_file is None) != (tls.key_file is None):
        missing = "key_file" if tls.key_file is None else "cert_file"
        raise InvalidInput("a certificate and its key go together", field=f"tls.{missing}")
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file, "tls.ca_file"),
        private_key=_read(tls.key_file, "tls.key_file"),
        certificate_chain=_read(tls.cert_file, "tls.cert_file"),
    )


def _read(path: Path | None, field: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}", field=field) from error
