"""Servers on unix sockets: beside a port, for their user only, and never in place of somebody else's."""

import os
import socket
import stat
from pathlib import Path

import grpc
import pytest
import trustme

from fakes.four_kinds import FourKinds, begin, failure, finish
from vplab import errors
from vplab.client import AsyncClient, ClientOptions
from vplab.runtime.server import StartError, running_server
from vplab.runtime.settings import ServerSettings, SettingsError, load_settings


def settings(path: Path, **more) -> ServerSettings:
    return ServerSettings(unix_socket=path, **more)


async def test_a_server_answers_on_its_port_and_on_its_socket(tmp_path: Path):
    async with running_server(FourKinds().registrations, settings(tmp_path / "s.sock")) as server:
        for address in (server.address, server.unix_address):
            async with grpc.aio.insecure_channel(address) as channel:
                assert await finish(begin("unary", channel))
    assert server.unix_address == f"unix:{tmp_path}/s.sock"


@pytest.mark.parametrize("where", ["beside", "alone"])
async def test_only_the_user_who_serves_can_connect(tmp_path: Path, where: str):
    path = tmp_path / "s.sock"
    made = settings(path) if where == "beside" else ServerSettings(listen=f"unix:{path}")
    before = os.umask(0o002)
    try:
        async with running_server(FourKinds().registrations, made):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)


async def test_what_a_killed_server_left_behind_makes_way(tmp_path: Path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with (
        running_server(FourKinds().registrations, settings(path)) as server,
        grpc.aio.insecure_channel(server.unix_address) as channel,
    ):
        assert await finish(begin("unary", channel))


async def test_a_server_that_lives_keeps_its_socket(tmp_path: Path):
    path = tmp_path / "s.sock"
    async with running_server(FourKinds().registrations, settings(path)) as server:
        with pytest.raises(StartError, match="another process listens"):
            async with running_server(FourKinds().registrations, settings(path)):
                pass
        async with grpc.aio.insecure_channel(server.unix_address) as channel:
            assert await finish(begin("unary", channel))


async def test_a_file_is_not_taken_for_a_socket(tmp_path: Path):
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(StartError, match="is no socket"):
        async with running_server(FourKinds().registrations, settings(tmp_path / "notes")):
            pass
    assert (tmp_path / "notes").read_text() == "keep"


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(StartError, match="folder cannot be used"):
        async with running_server(FourKinds().registrations, settings(tmp_path / "none" / "s.sock")):
            pass


@pytest.mark.parametrize("name", ["unix_socket", "listen"])
def test_a_path_that_no_socket_can_have_is_refused_before_the_start(name: str):
    path = f"/{'x' * 120}"
    with pytest.raises(SettingsError, match=f"{name}: .*121: choose a shorter folder"):
        load_settings(ServerSettings, **{name: path if name == "unix_socket" else f"unix:{path}"})


async def test_a_client_says_when_a_path_is_too_long():
    async with AsyncClient(registry=f"unix:/{'x' * 120}", options=ClientOptions()) as client:
        with pytest.raises(errors.InvalidInput, match="choose a shorter folder"):
            await client.registry.get_artifact("artifacts/a")


async def test_tokens_are_asked_for_on_the_socket_too(tmp_path: Path):
    async with (
        running_server(FourKinds().registrations, settings(tmp_path / "s.sock", tokens="alpha")) as server,
        grpc.aio.insecure_channel(server.unix_address) as channel,
    ):
        assert type(await failure(begin("unary", channel))) is errors.Unauthenticated
        assert await finish(begin("unary", channel, metadata=(("authorization", "Bearer alpha"),)))


async def test_where_the_port_takes_tls_alone_the_socket_does_too(tmp_path: Path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    made = settings(tmp_path / "s.sock", tls_certificate=certificate, tls_key=key)
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    options = [("grpc.ssl_target_name_override", "localhost")]
    async with running_server(FourKinds().registrations, made) as server:
        async with grpc.aio.insecure_channel(server.unix_address) as channel:
            assert type(await failure(begin("unary", channel, timeout=3))) in (
                errors.Unavailable,
                errors.DeadlineExceeded,
            )
        async with grpc.aio.secure_channel(server.unix_address, trusted, options) as channel:
            assert await finish(begin("unary", channel, timeout=20))
