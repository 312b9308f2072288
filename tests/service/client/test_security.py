"""TLS, mutual TLS and tokens between the client and a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, ClientOptions, TlsOptions
from vplab.errors import Unauthenticated, Unavailable
from vplab.runtime.server import RunningServer


@dataclass(frozen=True)
class Certificates:
    """A certificate authority's files: its own, the server's and a client's."""

    authority: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path

    @staticmethod
    def make(folder: Path) -> "Certificates":
        folder.mkdir()
        authority = trustme.CA()
        files = Certificates(
            *(folder / name for name in ("ca", "server.crt", "server.key", "client.crt", "client.key"))
        )
        server, client = authority.issue_cert("registry.test"), authority.issue_cert("line-2@factory.test")
        authority.cert_pem.write_to_path(files.authority)
        server.cert_chain_pems[0].write_to_path(files.server_certificate)
        server.private_key_pem.write_to_path(files.server_key)
        client.cert_chain_pems[0].write_to_path(files.client_certificate)
        client.private_key_pem.write_to_path(files.client_key)
        return files


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.make(tmp_path / "certificates")


@asynccontextmanager
async def registry(tmp_path: Path, **settings: object) -> AsyncIterator[RunningServer]:
    async with RegistryProcess(registry_config(tmp_path / "registry", **settings)).running() as server:
        yield server


async def ask(address: str, options: ClientOptions) -> None:
    async with AsyncClient(registry=address, options=options) as client:
        await client.registry.list_aliases(timeout_s=5)


async def test_the_server_is_known_by_its_certificate(tmp_path: Path, certificates: Certificates) -> None:
    tls = TlsOptions(ca_file=certificates.authority, server_name="registry.test")
    settings = {"tls_certificate": certificates.server_certificate, "tls_key": certificates.server_key}
    async with registry(tmp_path, **settings) as server:
        await ask(server.address, ClientOptions(tls=tls))
        stranger = Certificates.make(tmp_path / "stranger")
        for options in (
            ClientOptions(),
            ClientOptions(tls=TlsOptions(ca_file=stranger.authority, server_name="registry.test")),
            ClientOptions(tls=TlsOptions(ca_file=certificates.authority, server_name="other.test")),
        ):
            with pytest.raises(Unavailable, match="registry service at"):
                await ask(server.address, options)


async def test_the_client_is_known_by_its_certificate(tmp_path: Path, certificates: Certificates) -> None:
    settings = {
        "tls_certificate": certificates.server_certificate,
        "tls_key": certificates.server_key,
        "tls_client_ca": certificates.authority,
    }
    own = TlsOptions(
        certificates.authority, certificates.client_certificate, certificates.client_key, server_name="registry.test"
    )
    async with registry(tmp_path, **settings) as server:
        await ask(server.address, ClientOptions(tls=own))
        with pytest.raises(Unavailable):
            await ask(
                server.address, ClientOptions(tls=TlsOptions(certificates.authority, server_name="registry.test"))
            )


async def test_the_token_opens_the_door_and_any_other_does_not(tmp_path: Path) -> None:
    async with registry(tmp_path, tokens="s3cret") as server:
        await ask(server.address, ClientOptions(bearer_token="s3cret"))
        for token in (None, "other"):
            with pytest.raises(Unauthenticated) as caught:
                await ask(server.address, ClientOptions(bearer_token=token))
            assert caught.value.reason == "CREDENTIALS_INVALID"
