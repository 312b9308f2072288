"""TLS, mutual TLS, renewal of certificates and tokens while the server runs, for real clients."""

import asyncio
import hashlib
import os
import socket
import ssl

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fakes.four_kinds import KINDS, FourKinds, begin, failure, finish, open_channel
from vplab import errors
from vplab.client import AsyncClient, ClientOptions
from vplab.runtime import auth, request
from vplab.runtime.server import running_server
from vplab.runtime.settings import ServerSettings, SettingsError

SERVING = health_pb2.HealthCheckResponse.SERVING


class Site:
    """An authority, and the files a server reads."""

    def __init__(self, folder) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key, self.client_ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        self.authority.cert_pem.write_to_path(str(self.client_ca))
        self.install(self.authority.issue_cert("localhost", "127.0.0.1"))

    def install(self, certificate) -> None:
        """Replace the files as a careful administrator does: each at once."""
        pairs = ((self.key, certificate.private_key_pem), (self.certificate, certificate.cert_chain_pems[0]))
        for path, blob in pairs:
            fresh = path.with_suffix(".new")
            fresh.write_bytes(blob.bytes())
            os.replace(fresh, path)

    def settings(self, mutual: bool = False, **more) -> ServerSettings:
        client_ca = self.client_ca if mutual else None
        return ServerSettings(tls_certificate=self.certificate, tls_key=self.key, tls_client_ca=client_ca, **more)

    def channel(self, address: str, client_certificate=None, authority=None) -> grpc.aio.Channel:
        key, chain = None, None
        if client_certificate is not None:
            key = client_certificate.private_key_pem.bytes()
            chain = client_certificate.cert_chain_pems[0].bytes()
        roots = (authority or self.authority).cert_pem.bytes()
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain))

    async def serial(self, address: str, client_certificate=None) -> str:
        """Return the serial number of the certificate a new connection is shown."""
        return await asyncio.to_thread(self._serial, address, client_certificate)

    def _serial(self, address: str, client_certificate) -> str:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        context.set_alpn_protocols(["h2"])
        if client_certificate is not None:
            client_certificate.configure_cert(context)
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secured,
        ):
            return secured.getpeercert()["serialNumber"]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
async def test_tls_serves_every_kind_of_call(site, kind):
    async with (
        running_server(FourKinds().registrations, site.settings()) as server,
        site.channel(server.address) as channel,
    ):
        assert await finish(begin(kind, channel, timeout=20))


async def test_a_client_that_trusts_another_authority_gets_nothing(site):
    async with (
        running_server(FourKinds().registrations, site.settings()) as server,
        site.channel(server.address, authority=trustme.CA()) as channel,
    ):
        assert type(await failure(begin("unary", channel, timeout=5))) in (
            errors.Unavailable,
            errors.DeadlineExceeded,
        )


async def test_mutual_tls_takes_clients_of_the_authority_only(site):
    good = site.authority.issue_cert("line-3@plant.example")
    forged = trustme.CA().issue_cert("line-3@plant.example")
    async with (
        running_server(FourKinds().registrations, site.settings(mutual=True)) as server,
        site.channel(server.address, good) as channel,
    ):
        assert await finish(begin("unary", channel, timeout=20))
        for certificate in (None, forged):
            async with site.channel(server.address, certificate) as channel:
                error = await failure(begin("unary", channel, timeout=5))
                assert type(error) in (errors.Unavailable, errors.DeadlineExceeded)


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual tls"])
async def test_a_renewed_certificate_is_shown_without_a_restart_and_old_connections_live_on(site, mutual):
    client = site.authority.issue_cert("client@plant.example") if mutual else None
    async with (
        running_server(FourKinds().registrations, site.settings(mutual)) as server,
        site.channel(server.address, client) as old,
    ):
        await finish(begin("unary", old, timeout=20))
        before = await site.serial(server.address, client)
        site.install(site.authority.issue_cert("localhost", "127.0.0.1"))
        after = await site.serial(server.address, client)
        assert after != before
        await finish(begin("unary", old, timeout=20))
        async with site.channel(server.address, client) as fresh:
            await finish(begin("unary", fresh, timeout=20))


async def test_a_renewed_client_authority_is_used_without_a_restart(site):
    other = trustme.CA()
    newcomer = other.issue_cert("client@new.example")
    async with (
        running_server(FourKinds().registrations, site.settings(mutual=True)) as server,
        site.channel(server.address, newcomer) as channel,
    ):
        assert isinstance(await failure(begin("unary", channel, timeout=3)), errors.VPLabError)
        site.client_ca.write_bytes(site.authority.cert_pem.bytes() + other.cert_pem.bytes())
        async with site.channel(server.address, newcomer) as channel:
            await finish(begin("unary", channel, timeout=20))


async def test_files_that_do_not_fit_together_leave_the_last_certificate_in_use(site):
    async with running_server(FourKinds().registrations, site.settings()) as server:
        before = await site.serial(server.address)
        fresh = site.authority.issue_cert("localhost", "127.0.0.1")
        site.certificate.write_bytes(fresh.cert_chain_pems[0].bytes())  # and the old key
        assert await site.serial(server.address) == before
        site.key.write_bytes(b"junk")
        assert await site.serial(server.address) == before
        site.key.unlink()
        assert await site.serial(server.address) == before
        site.install(fresh)
        assert await site.serial(server.address) != before


@pytest.mark.parametrize("content", [b"", b"no pem"])
async def test_unusable_files_stop_the_start_naming_the_settings(site, content):
    site.key.write_bytes(content)
    with pytest.raises(SettingsError, match="tls_certificate, tls_key, tls_client_ca"):
        async with running_server(FourKinds().registrations, site.settings()):
            pass


async def test_health_answers_in_plain_text_on_its_own_port_beside_mutual_tls(site):
    settings = site.settings(mutual=True, health_listen="127.0.0.1:0")
    async with (
        running_server(FourKinds().registrations, settings) as server,
        grpc.aio.insecure_channel(server.health_address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
        assert type(await failure(begin("unary", channel))) is errors.Unimplemented


class Callers:
    """Notes who calls, as the device's queue is told."""

    def __init__(self) -> None:
        self.seen = []

    async def __call__(self) -> None:
        self.seen.append(request.client())


async def test_a_client_is_known_by_its_certificate_however_often_it_connects(site):
    callers = Callers()
    line, lab = site.authority.issue_cert("line@plant.example"), site.authority.issue_cert("lab@plant.example")
    async with running_server(FourKinds(callers).registrations, site.settings(mutual=True)) as server:
        for certificate in (line, line, lab):
            async with site.channel(server.address, certificate) as channel:
                await finish(begin("unary", channel, timeout=20))
    assert callers.seen[0] == callers.seen[1] != callers.seen[2]


async def test_a_client_is_known_by_its_token_but_not_in_words():
    callers = Callers()
    async with running_server(FourKinds(callers).registrations, ServerSettings(tokens="alpha,beta")) as server:
        for token in ("alpha", "alpha", "beta"):
            async with grpc.aio.insecure_channel(server.address) as channel:
                await finish(begin("unary", channel, metadata=bearer(token)))
    assert callers.seen[0] == callers.seen[1] != callers.seen[2]
    assert "alpha" not in callers.seen[0]


async def test_others_are_known_by_their_connection_and_not_by_a_token_that_nobody_checks():
    callers = Callers()
    async with running_server(FourKinds(callers).registrations, ServerSettings()) as server:
        for port in range(2):  # gRPC would share the connection of equal channels
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(server.address, options=options) as channel:
                await finish(begin("unary", channel, metadata=bearer(f"any {port}")))
                await finish(begin("unary", channel))
    assert callers.seen[0] == callers.seen[1] != callers.seen[2] == callers.seen[3]


async def test_only_trusted_services_and_connections_may_say_for_whom_they_call(site):
    callers = Callers()

    async def call(channel, client, token="any"):
        metadata = (*bearer(token), (request.CLIENT_KEY, client))
        await finish(begin("unary", channel, metadata=metadata, timeout=20))

    service = f"token:{hashlib.sha256(b'Bearer service').hexdigest()[:16]}"
    settings = ServerSettings(tokens="service,user", trusted_clients=(service,))
    async with (
        running_server(FourKinds(callers).registrations, settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        for client, token in (("a", "service"), ("b", "service"), ("a", "user"), ("b", "user"), ("c" * 513, "service")):
            await call(channel, client, token)
    assert callers.seen[:2] == [f"{service} for a", f"{service} for b"]
    assert callers.seen[2] == callers.seen[3] != service
    assert callers.seen[4] == service

    callers.seen.clear()
    certificate = site.authority.issue_cert("segmentation@plant.example")
    for trusted in ((), ("certificate:segmentation@plant.example",)):
        settings = site.settings(mutual=True, trusted_clients=trusted)
        async with (
            running_server(FourKinds(callers).registrations, settings) as server,
            site.channel(server.address, certificate) as channel,
        ):
            await call(channel, "a")
    name = callers.seen[0]
    assert callers.seen == [name, f"{name} for a"]

    callers.seen.clear()
    async with (
        running_server(FourKinds(callers).registrations, ServerSettings()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await call(channel, "a")
        await call(channel, "b")
    assert [name.rpartition(" for ")[2] for name in callers.seen] == ["a", "b"]


async def test_the_users_of_one_service_are_as_many_at_the_next():
    callers, own_pool = Callers(), [("grpc.use_local_subchannel_pool", 1)]
    async with running_server(FourKinds(callers).registrations, ServerSettings()) as behind:
        options = ClientOptions(client=request.client)
        async with AsyncClient(registry=behind.address, options=options) as client:

            async def forward() -> None:
                await client.registry.query_upload("0" * 64)

            async with running_server(FourKinds(forward).registrations, ServerSettings()) as front:
                for _ in range(2):
                    async with grpc.aio.insecure_channel(front.address, options=own_pool) as channel:
                        await finish(begin("unary", channel))
                        await finish(begin("unary", channel))
    assert callers.seen[0] == callers.seen[1] != callers.seen[2] == callers.seen[3]


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_valid_token_is_needed_for_every_kind_of_call(kind):
    async with open_channel(FourKinds().registrations, tokens="alpha,beta") as channel:
        for token in ("alpha", "beta"):
            assert await finish(begin(kind, channel, metadata=bearer(token)))
        for metadata in ((), bearer("gamma"), bearer("alph"), bearer(""), (("authorization", "Basic alpha"),)):
            error = await failure(begin(kind, channel, metadata=metadata))
            assert (type(error), error.reason) == (errors.Unauthenticated, "CREDENTIALS_INVALID")


async def test_health_needs_no_token_and_reflection_does():
    async with open_channel(FourKinds().registrations, tokens="alpha") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests)
        assert type(await failure(call)) is errors.Unauthenticated


async def test_a_changed_token_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_RECHECK_S", 0.0)
    file = tmp_path / "tokens"
    file.write_text("# line 3\nalpha\n\n")
    async with open_channel(FourKinds().registrations, token_file=file) as channel:
        await finish(begin("unary", channel, metadata=bearer("alpha")))
        file.write_text("beta\n")
        await finish(begin("unary", channel, metadata=bearer("beta")))
        assert type(await failure(begin("unary", channel, metadata=bearer("alpha")))) is errors.Unauthenticated
        file.unlink()
        await finish(begin("unary", channel, metadata=bearer("beta")))
        file.write_text("")
        assert type(await failure(begin("unary", channel, metadata=bearer("beta")))) is errors.Unauthenticated


async def test_a_comment_or_blank_line_is_no_token(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("# comment\n\nalpha\n")
    async with open_channel(FourKinds().registrations, token_file=file) as channel:
        for token in ("# comment", "", "#"):
            assert type(await failure(begin("unary", channel, metadata=bearer(token)))) is errors.Unauthenticated


async def test_a_token_file_that_is_missing_at_the_start_is_a_clear_error(tmp_path):
    with pytest.raises(SettingsError, match="token_file: cannot read"):
        async with open_channel(FourKinds().registrations, token_file=tmp_path / "none"):
            pass
