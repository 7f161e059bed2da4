"""Settings come from one prefix, and a malformed one is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_node.cli.settings import load_configuration, load_settings
from inference_node.config import EngineConfig
from inference_node.errors import BadConfiguration
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.tokens import TokenRules


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN", "INSECURE", "BASE_MODEL", "DEVICE", "POOL_MB", "KV_TOKENS"):
        monkeypatch.delenv(f"LORAPOOL_{name}", raising=False)


def test_nothing_set_gives_the_engines_and_the_servers_own_defaults() -> None:
    settings = load_settings()
    assert settings.engine_config("m") == EngineConfig(base_model="m")
    assert settings.server_config() == ServerConfig()


def test_variables_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPOOL_POOL_MB", "64")
    monkeypatch.setenv("LORAPOOL_KV_TOKENS", "4096")
    monkeypatch.setenv("LORAPOOL_LINEARS", "dense")
    monkeypatch.setenv("LORAPOOL_TENANT_WEIGHTS", "gold=4, trial=0.5")
    monkeypatch.setenv("LORAPOOL_POOL_SHARES", "gate_proj=0.5,down_proj=0.25")
    monkeypatch.setenv("LORAPOOL_INSECURE", "1")
    monkeypatch.setenv("LORAPOOL_LISTEN", "0.0.0.0:1")
    settings = load_settings()
    config = settings.engine_config("m")
    assert (config.pool_bytes, config.kv_tokens, config.linears) == (64 * 2**20, 4096, "dense")
    assert config.tenant_weights == {"gold": 4.0, "trial": 0.5}
    assert config.pool_shares == {"gate_proj": 0.5, "down_proj": 0.25}
    assert settings.server_config().listen == "0.0.0.0:1"


def test_a_flag_goes_before_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPOOL_DEVICE", "cuda")
    assert load_settings(device="cpu").device == "cpu"
    assert load_settings().device == "cuda"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_MB", "lots"),
        ("POOL_MB", "0"),
        ("DEVICE", "tpu"),
        ("DRAIN_SECONDS", "-1"),
        ("TENANT_WEIGHTS", "gold=much"),
        ("TENANT_WEIGHTS", "gold=4,"),
        ("POOL_SHARES", "down_proj"),
    ],
)
def test_a_malformed_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LORAPOOL_{name}", value)
    with pytest.raises(BadConfiguration, match=f"LORAPOOL_{name}"):
        load_settings()


@pytest.mark.parametrize("name", ["tenant_weights", "pool_shares"])
def test_a_share_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"LORAPOOL_{name.upper()}", "gold=0")
    with pytest.raises(BadConfiguration, match=name):
        load_settings().engine_config("m")


def test_settings_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPOOL_STEP_TOKENS", "8")
    with pytest.raises(BadConfiguration, match="step_tokens"):
        load_settings().engine_config("m")


def test_a_named_base_model_is_taken_as_it_is() -> None:
    assert load_settings(base_model="/models/x").checkpoint() == "/models/x"


def test_tls_files_reach_the_server_and_a_passphrase_comes_from_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    for name in ("CERT", "KEY", "CLIENT_CA"):
        monkeypatch.setenv(f"LORAPOOL_TLS_{name}_FILE", f"/tls/{name}.pem")
    monkeypatch.setenv("LORAPOOL_TLS_KEY_PASSPHRASE_FILE", str(secret))
    tls = load_settings().server_config().tls
    assert tls is not None
    assert [str(path) for path in tls.paths] == [
        f"/tls/{n}.pem" for n in ("CERT", "KEY", "CLIENT_CA")
    ]
    assert tls.passphrase == "correct horse"
    assert "horse" not in repr(tls)
    monkeypatch.setenv("LORAPOOL_TLS_KEY_PASSPHRASE", "another")
    with pytest.raises(BadConfiguration, match="not both"):
        load_settings().server_config()


def test_half_of_a_key_pair_is_refused_by_the_name_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAPOOL_TLS_CERT_FILE", "/tls/cert.pem")
    with pytest.raises(BadConfiguration, match="LORAPOOL_TLS_KEY_FILE"):
        load_settings().server_config()


def test_tokens_need_their_keys_their_issuer_and_their_audience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAPOOL_JWKS_FILE", "/keys/jwks.json")
    monkeypatch.setenv("LORAPOOL_JWT_ISSUER", "https://issuer.example")
    with pytest.raises(BadConfiguration, match="LORAPOOL_JWT_AUDIENCE is not set"):
        load_settings().server_config()
    monkeypatch.setenv("LORAPOOL_JWT_AUDIENCE", "lorapool")
    auth = load_settings().server_config().auth
    assert auth is not None
    assert auth.tokens == TokenRules(
        jwks=Path("/keys/jwks.json"), issuer="https://issuer.example", audience="lorapool"
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        'pool_mb = 64\nkv_tokens = 4096\ndevice = "cuda"\ns3_bucket = "ours"\n'
        's3_endpoint = "http://127.0.0.1:1"\n[tenant_weights]\ngold = 4\n'
    )
    return path


def test_a_flag_goes_before_a_variable_and_a_variable_before_the_file(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("LORAPOOL_KV_TOKENS", "8192")
    found = load_configuration({"device": "cpu", "listen": None}, file)
    node = found.node
    assert (node.pool_mb, node.kv_tokens, node.device) == (64, 8192, "cpu")
    assert node.tenant_weights == {"gold": 4.0}
    assert found.sources == {
        "pool_mb": str(file),
        "kv_tokens": "environment",
        "device": "flag",
        "tenant_weights": str(file),
        "s3_bucket": str(file),
        "s3_endpoint": str(file),
    }
    assert found.store == {"s3_bucket": "ours", "s3_endpoint": "http://127.0.0.1:1"}
    monkeypatch.setenv("LORAPOOL_CONFIG", str(file))
    assert load_settings().pool_mb == 64


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pool_mb = 0", "pool_mb in .*settings.toml=0"),
        ('pool_mb = "lots"', "pool_mb in"),
        ("pool = 1", "pool is no setting"),
        ("pool_mb = ", "is not TOML"),
    ],
)
def test_what_a_settings_file_cannot_say_is_refused_by_its_name(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(BadConfiguration, match=named):
        load_configuration({}, path)


def test_a_settings_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="cannot be read"):
        load_configuration({}, tmp_path / "nowhere.toml")
