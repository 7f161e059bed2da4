"""One real node with everything switched on: what it says of requests, and what it never says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from inference_node.errors import AdapterNotFound
from tests.adapter_store.waiting import wait_until
from tests.inference_node.telemetry.scrapes import scrape
from tests.integration.asking import exactly
from tests.integration.node_process import NodeProcess
from tests.integration.site import Site

SPOKEN = "canary prompt 7f3a"
SECRET = "canary-s3cret-9b1e"


@pytest.fixture
def telling(site: Site, tmp_path: Path) -> NodeProcess:
    """A node of its own that logs as much as it can, as JSON."""
    secret = tmp_path / "passphrase"
    secret.write_text(SECRET)
    node = site.node()
    node.folder = tmp_path
    node.environment = {
        **node.environment,
        "LORAPOOL_LOG_LEVEL": "DEBUG",
        "LORAPOOL_LOG_FORMAT": "json",
        "LORAPOOL_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
        "LORAPOOL_METRICS_LISTEN": "127.0.0.1:0",
        "LORAPOOL_TLS_KEY_PASSPHRASE": SECRET,
    }
    return node


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_audit_and_metrics_agree_on_every_request_and_say_no_secret_and_no_prompt(
    telling: NodeProcess, site: Site, voices: list[Path], tmp_path: Path
) -> None:
    published = site.publish("audited", voices[0], label="v1")
    telling.start()
    try:
        with telling.client() as client:
            first = client.generate(
                SPOKEN, adapter="audited", stopping=exactly(24), request_id="one"
            )
            assert list(client.stream(SPOKEN, adapter="audited@v1", stopping=exactly(6)))
            with pytest.raises(AdapterNotFound):
                client.generate(SPOKEN, adapter="nobody", request_id="two")
        log = telling.log
        wait_until(lambda: len(documents(tmp_path / "audit.jsonl")) == 3, within_s=10)
        found = scrape(metrics_address(log))
    finally:
        telling.terminate()
        assert telling.exit_code() == 0
    logged = [line for line in documents(log) if line["logger"] == "inference_node.requests"]
    audited = documents(tmp_path / "audit.jsonl")
    assert [line["message"] for line in documents(log)][-1] == "drained"
    shared = audited[0].keys() - {"time"}
    assert [{k: line[k] for k in shared if k in line} for line in logged] == [
        {k: line[k] for k in shared if k in line} for line in audited
    ]
    one, stream, two = audited
    assert (one["request_id"], one["digest"]) == ("one", first.served.digest)
    assert (one["generation"], one["version"]) == (published.gen, "v1")
    assert (stream["method"], stream["generated_tokens"]) == ("StreamGenerate", 6)
    assert (two["outcome"], two["reason"]) == ("refused", "ADAPTER_NOT_FOUND")
    assert "digest" not in two
    version = {"tenant": "default", "adapter": "audited", "version": "v1"}
    assert found.total("lorapool_version_requests_total", **version) == 2
    assert found.total("lorapool_version_generated_tokens_total", **version) == 30
    assert found.of("lorapool_audit_lost_lines_total") == 0
    for said in (log.read_text(), (tmp_path / "audit.jsonl").read_text(), found.text):
        for secret in (SPOKEN, SECRET, site.endpoints.s3_secret_key, first.text.strip()):
            assert secret
            assert secret not in said


def metrics_address(log: Path) -> str:
    found = re.search(r"metrics +http://(\S+?)/metrics", log.read_text())
    assert found is not None
    return found[1]
