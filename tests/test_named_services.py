"""How a store is named for the suites, and how a MinIO is found, started and stopped for them.

The programs here only stand where MinIO would: they prove what is done with a program, and nothing
about MinIO.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from adapter_store.settings import Endpoints
from tests import minio, store_suites
from tests.named_services import (
    REDIS_URL,
    S3_BUCKET_PREFIX,
    S3_ENDPOINT,
    S3_KEY,
    S3_REGION,
    S3_SECRET,
    NotNamed,
    named_or,
    new_bucket,
)

EMBEDDED = Endpoints("http://127.0.0.1:1", "k", "s", "redis://127.0.0.1:2/0")
NAMED = {S3_ENDPOINT: "https://s3.example", S3_KEY: "key", S3_SECRET: "secret"}
SERVES_AFTER_A_REFUSAL = """
import http.server, os, pathlib, sys
asked = []
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(self.path)
        self.send_response(503 if len(asked) < 3 else 200)
        self.end_headers()
    def log_message(self, *args):
        pass
pathlib.Path(os.environ["HOME"], "argv").write_text(" ".join(sys.argv[1:]))
host, port = sys.argv[sys.argv.index("--address") + 1].split(":")
http.server.HTTPServer((host, int(port)), Health).serve_forever()
"""


def fake(folder: Path, text: str) -> Path:
    path = folder / "minio"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


def test_a_named_endpoint_takes_the_place_of_the_embedded_one() -> None:
    found = named_or(lambda: EMBEDDED, environ=NAMED | {S3_REGION: "eu-central-1"})
    assert (found.s3_endpoint, found.s3_region) == ("https://s3.example", "eu-central-1")
    assert (found.s3_access_key, found.s3_secret_key) == ("key", "secret")
    assert found.redis_url == EMBEDDED.redis_url
    assert named_or(lambda: EMBEDDED, environ={}) == EMBEDDED


def test_nothing_is_embedded_when_everything_is_named() -> None:
    def embedded() -> Endpoints:
        raise AssertionError("services were started")

    found = named_or(embedded, environ=NAMED | {REDIS_URL: "redis://r:1/0"})
    assert (found.redis_url, found.s3_region) == ("redis://r:1/0", "us-east-1")


@pytest.mark.parametrize("missing", [S3_KEY, S3_SECRET])
def test_an_endpoint_without_its_keys_is_refused_by_the_variable(missing: str) -> None:
    with pytest.raises(NotNamed, match=missing):
        named_or(lambda: EMBEDDED, environ=NAMED | {missing: ""})


def test_buckets_carry_the_prefix_that_was_asked_for() -> None:
    assert new_bucket({S3_BUCKET_PREFIX: "ours-"}).startswith("ours-")
    assert new_bucket({}).startswith("lorapool-test-")
    assert new_bucket({}) != new_bucket({})


def test_every_suite_is_there() -> None:
    assert [name for name in store_suites.SUITES if not (store_suites.ROOT / name).exists()] == []


def test_without_a_named_store_nothing_runs_and_the_variables_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(S3_ENDPOINT, raising=False)
    assert store_suites.main() == store_suites.MISUSED
    assert S3_ENDPOINT in capsys.readouterr().err


def test_without_any_minio_the_message_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert minio.main({"PATH": str(tmp_path)}) == minio.MISUSED
    told = capsys.readouterr().err
    assert all(word in told for word in ("MINIO_BIN", "PATH", "docker", "go install"))
    assert minio.main({"PATH": str(tmp_path), "MINIO_BIN": "/nowhere/minio"}) == minio.MISUSED
    assert "/nowhere/minio" in capsys.readouterr().err


def test_a_minio_is_found_on_the_path_and_minio_bin_goes_first(tmp_path: Path) -> None:
    on_path = fake(tmp_path, "")
    other = tmp_path / "other"
    other.mkdir()
    assert minio.find_minio({"PATH": str(tmp_path)}) == on_path
    chosen = {"PATH": str(tmp_path), "MINIO_BIN": str(fake(other, ""))}
    assert minio.find_minio(chosen) == other / "minio"


def test_a_program_is_waited_for_named_and_stopped_and_its_folder_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with minio.program(fake(tmp_path, SERVES_AFTER_A_REFUSAL)) as named:
        assert minio._is_healthy(named[S3_ENDPOINT])
        (argv,) = tmp_path.glob("lorapool-minio-*/argv")
        home, words = argv.parent, argv.read_text()
        assert words.split()[:2] == ["server", str(home / "data")]
        assert named[S3_SECRET] not in words
        assert named[S3_KEY] not in words
    assert not minio._is_healthy(named[S3_ENDPOINT])
    assert not home.exists()


def test_a_program_that_ends_at_start_or_never_serves_is_told_with_its_last_words(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(minio.NoMinio, match="ended at start: no disk for me"),
        minio.program(fake(tmp_path, "import sys; sys.exit('no disk for me')")),
    ):
        pass
    with (
        pytest.raises(minio.NoMinio, match=r"not healthy after 0\.2 s"),
        minio.program(fake(tmp_path, "import time; time.sleep(60)"), ready_s=0.2),
    ):
        pass
