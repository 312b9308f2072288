"""Settings from the environment: prefixes, checks, and messages that name the variable."""

import os
import re
from pathlib import Path

import pytest
from pydantic import Field

from vplab.runtime.settings import ServerSettings, SettingsError, load_settings, unknown_variables


class LoomSettings(ServerSettings, env_prefix="VPLAB_LOOM_"):
    listen: str = "127.0.0.1:6000"
    num_threads: int = 2
    limits: dict[str, int] = Field(default_factory=dict)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("VPLAB_"):
            monkeypatch.delenv(name)


def test_a_service_reads_its_own_prefix(monkeypatch):
    monkeypatch.setenv("VPLAB_LOOM_LISTEN", "[::]:7000")
    monkeypatch.setenv("VPLAB_LOOM_NUM_THREADS", "4")
    settings = load_settings(LoomSettings)
    assert (settings.listen, settings.num_threads) == ("[::]:7000", 4)


def test_a_common_setting_can_be_said_once_and_overridden(monkeypatch):
    monkeypatch.setenv("VPLAB_LOG_LEVEL", "debug")
    assert load_settings(LoomSettings).log_level == "debug"
    monkeypatch.setenv("VPLAB_LOOM_LOG_LEVEL", "error")
    assert load_settings(LoomSettings).log_level == "error"


@pytest.mark.parametrize("name", ["LISTEN", "METRICS_PORT", "HEALTH_LISTEN", "NUM_THREADS"])
def test_addresses_and_the_services_own_settings_are_not_shared(monkeypatch, name):
    before = load_settings(LoomSettings)
    monkeypatch.setenv(f"VPLAB_{name}", "1.2.3.4:99" if "LISTEN" in name else "99")
    assert load_settings(LoomSettings) == before


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("VPLAB_LOOM_LISTEN", "127.0.0.1:1")
    assert load_settings(LoomSettings, listen="127.0.0.1:2").listen == "127.0.0.1:2"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("VPLAB_LOOM_LISTEN", "8080", "host:port"),
        ("VPLAB_LOOM_LISTEN", "localhost:99999", "host:port"),
        ("VPLAB_LOOM_LISTEN", "unix:", "unix:/path"),
        ("VPLAB_LOOM_METRICS_PORT", "-1", "greater than or equal to 0"),
        ("VPLAB_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("VPLAB_LOOM_MAX_RECEIVE_BYTES", "10", "1024"),
        ("VPLAB_DRAIN_GRACE_S", "inf", "finite"),
        ("VPLAB_LOOM_NUM_THREADS", "many", "integer"),
        ("VPLAB_LOOM_LIMITS", "{", "JSON"),
        ("VPLAB_TOKENS", "one,,two", "empty token"),
        ("VPLAB_OTLP_ENDPOINT", "collector:4317", "http://host:port"),
    ],
)
def test_a_wrong_value_is_refused_naming_the_variable(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name}: .*{re.escape(says)}"):
        load_settings(LoomSettings)


def test_every_wrong_variable_is_named(monkeypatch):
    monkeypatch.setenv("VPLAB_LOOM_NUM_THREADS", "x")
    monkeypatch.setenv("VPLAB_LOG_LEVEL", "x")
    with pytest.raises(SettingsError) as refusal:
        load_settings(LoomSettings)
    assert {line.split(":")[0] for line in str(refusal.value).splitlines()} == {
        "VPLAB_LOOM_NUM_THREADS",
        "VPLAB_LOG_LEVEL",
    }


def test_a_wrong_argument_is_named_as_such():
    with pytest.raises(SettingsError, match=r"^listen: must be"):
        load_settings(LoomSettings, listen="nowhere")


@pytest.mark.parametrize(
    "values", [{"tls_key": Path("k")}, {"tls_certificate": Path("c")}, {"tls_client_ca": Path("a")}]
)
def test_half_of_a_tls_configuration_is_refused(values):
    with pytest.raises(SettingsError, match="tls_key"):
        load_settings(LoomSettings, **values)


def test_none_unsets_a_setting(monkeypatch):
    monkeypatch.setenv("VPLAB_DEFAULT_DEADLINE_S", "none")
    assert load_settings(LoomSettings).default_deadline_s is None


def test_tokens_are_separated_by_commas_and_not_shown(monkeypatch):
    monkeypatch.setenv("VPLAB_TOKENS", "alpha, beta")
    settings = load_settings(LoomSettings)
    assert [token.get_secret_value() for token in settings.tokens] == ["alpha", "beta"]
    assert "alpha" not in repr(settings)


def test_a_mistyped_variable_is_found_with_a_suggestion():
    environment = {"VPLAB_LOOM_NUM_THREDS": "4", "VPLAB_LOOM_LISTEN": "x:1", "PATH": "/bin"}
    assert unknown_variables(LoomSettings, environment) == [
        "VPLAB_LOOM_NUM_THREDS is no setting; did you mean VPLAB_LOOM_NUM_THREADS?"
    ]


@pytest.mark.parametrize("name", ["PORT", "SERVICE_HOST", "SERVICE_PORT_GRPC", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"])
def test_what_kubernetes_sets_for_a_service_is_no_mistake(name):
    assert unknown_variables(LoomSettings, {f"VPLAB_LOOM_{name}": "tcp://10.0.0.1:50051"}) == []


def test_variables_lists_own_and_shared_names():
    names = LoomSettings.variables()
    assert names["VPLAB_LOOM_LISTEN"] == "listen"
    assert names["VPLAB_LOG_LEVEL"] == "log_level"
    assert "VPLAB_LISTEN" not in names


def test_defaults_are_safe_on_one_machine():
    settings = ServerSettings()
    assert settings.listen.startswith("127.0.0.1:")
    assert settings.metrics_port is None
