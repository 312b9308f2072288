"""Server credentials from PEM files that are renewed while the server runs.

``grpc.dynamic_ssl_server_credentials`` asks before each handshake, also under ``grpc.aio``; connections that exist keep
the certificate they began with until they reach their maximum age.
"""

import ssl
import threading
from pathlib import Path

import grpc
import structlog

from vplab.runtime._file_stamp import Stamp, stamp
from vplab.runtime.settings import ServerSettings, SettingsError

_log = structlog.get_logger(__name__)


class CertificateFiles:
    """A certificate, its key and the clients' authorities, as last read in a state where they fit together."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._lock = threading.Lock()
        self._stamp = stamp(self._paths)
        self._failed: Stamp | None = None
        self.initial = self._read()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration if the files changed and fit together, else None. Called on gRPC's threads."""
        with self._lock:
            try:
                now = stamp(self._paths)
                if now in (self._stamp, self._failed):
                    return None
                configuration = self._read()
                if stamp(self._paths) != now:
                    return None  # still being written: the next handshake looks again
            except (OSError, ValueError) as error:
                self._note_failure(error)
                return None
            self._stamp, self._failed = now, None
            _log.info("certificate read again", file=str(self._certificate))
            return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        # gRPC would take a key that does not belong to the certificate and then fail every handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        authorities = None if self._client_ca is None else self._client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)

    def _note_failure(self, error: Exception) -> None:
        try:
            self._failed = stamp(self._paths)
        except OSError:
            self._failed = None
        _log.error("certificate files do not fit together; the last ones stay in use", error=str(error))


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """Return the credentials the settings ask for, None for plain text. Raises SettingsError for unusable files."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        files = CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    except (OSError, ValueError) as error:
        raise SettingsError(f"tls_certificate, tls_key, tls_client_ca: cannot be used: {error}") from None
    return grpc.dynamic_ssl_server_credentials(
        files.initial,
        files.renewed,  # type: ignore[arg-type]  # the stubs forget that None means no change
        require_client_authentication=settings.tls_client_ca is not None,
    )
