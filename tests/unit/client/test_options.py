from pathlib import Path

import pytest

from vplab.client import AsyncClient, ClientOptions, TlsOptions
from vplab.client.channels import open_channel
from vplab.client.options import resolve_addresses
from vplab.errors import InvalidInput


def test_an_address_comes_from_the_nearest_place_that_names_one() -> None:
    environment = {"VPLAB_REGISTRY_ADDRESS": "env:1", "VPLAB_ADDRESS": "env:0"}
    assert resolve_addresses({"registry": "own:1"}, "shared:0", environment)["registry"] == "own:1"
    assert resolve_addresses({"registry": None}, "shared:0", environment)["registry"] == "shared:0"
    assert resolve_addresses({}, None, environment)["registry"] == "env:1"
    assert resolve_addresses({}, None, environment)["training"] == "env:0"
    assert resolve_addresses({}, None, {}) == {}


async def test_an_area_without_an_address_is_invalid_input_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("VPLAB_ADDRESS", "VPLAB_EMBEDDING_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    async with AsyncClient(registry="localhost:1") as client:
        with pytest.raises(InvalidInput, match="VPLAB_EMBEDDING_ADDRESS") as caught:
            _ = client.embedding
    assert caught.value.violations[0].field == "embedding"


def test_the_environment_brings_token_and_certificates() -> None:
    options = ClientOptions.from_environment(
        {"VPLAB_TOKEN": "t", "VPLAB_TLS_CA_FILE": "/ca", "VPLAB_TLS_CERT_FILE": "/c", "VPLAB_TLS_KEY_FILE": "/k"}
    )
    assert options.bearer_token == "t"
    assert options.tls == TlsOptions(Path("/ca"), Path("/c"), Path("/k"))
    assert ClientOptions.from_environment({}).tls is None


@pytest.mark.parametrize(
    ("tls", "field"),
    [
        (TlsOptions(ca_file=Path("/absent.pem")), "tls.ca_file"),
        (TlsOptions(cert_file=Path("/absent.pem")), "tls.key_file"),
        (TlsOptions(key_file=Path("/absent.pem")), "tls.cert_file"),
    ],
)
async def test_certificates_that_cannot_be_used_are_invalid_input(tls: TlsOptions, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_channel("registry", "localhost:1", ClientOptions(tls=tls))
    assert caught.value.violations[0].field == field
