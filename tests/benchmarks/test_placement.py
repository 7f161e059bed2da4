from __future__ import annotations

import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.fleet_sim import measured
from benchmarks.placement.books import Books, read

PAGE = """\
# TYPE lorapool_version_requests_total counter
lorapool_version_requests_total{adapter="a0",version="v1",outcome="completed"} 5.0
lorapool_version_requests_total{adapter="a0",version="v2",outcome="completed"} 2.0
lorapool_version_requests_total{adapter="a1",version="v1",outcome="completed"} 1.0
# TYPE lorapool_adapter_loads_total counter
lorapool_adapter_loads_total{source="store"} 2.0
lorapool_adapter_loads_total{source="host"} 1.0
# TYPE lorapool_versions gauge
lorapool_versions{tier="device",state="resident"} 3.0
lorapool_versions{tier="host",state="verified"} 7.0
"""


class _Node(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def scraped() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_node_s_metrics_say_what_it_was_asked_for_and_what_it_had_to_load(scraped: str) -> None:
    books = read([scraped])
    assert books.asked == (Counter(a0=7, a1=1),)
    assert books.loaded == (3,)
    assert books.on_device == (3,)
    assert books.on_host == (7,)
    assert books.device_hits == 1 - 3 / 8
    assert books.since(books).requests == 0


def test_affinity_is_the_share_of_requests_on_the_node_that_has_most_of_their_adapter() -> None:
    asked = (Counter(a=9, b=1), Counter(a=1, b=4), Counter(c=5))
    books = Books(asked, loaded=(1, 1, 1), on_device=(1, 1, 1), on_host=(0, 0, 0))
    assert books.affinity == (9 + 4 + 5) / 20
    assert books.working_sets == [2, 2, 1]
    assert books.at({"a": 0, "b": 0, "c": 2}) == (9 + 1 + 5) / 20


def test_the_committed_run_kept_adapters_on_their_nodes_and_its_control_did_not() -> None:
    told = json.loads((measured.RESULTS / "placement.json").read_text())
    ring, blind = told["rows"]
    assert ring["adapters"] == blind["adapters"] == 2_000
    assert ring["affinity"] >= 0.95
    assert blind["affinity"] < 0.7
    assert ring["on_the_node_that_the_simulated_ring_names"] == ring["affinity"]
    assert max(ring["working_sets"]) < min(blind["working_sets"])
    for row in (ring, blind):
        assert sum(row["requests_by_node"]) == row["requests"]
        assert row["device_hits"] == pytest.approx(row["device_hits_simulated"], abs=0.02)
