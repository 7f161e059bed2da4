"""A result file holds every row's latest figures, and says when and on what each was measured."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.registry import entry
from tests.chaos.results import kept, write


def test_rows_that_did_not_run_keep_their_figures_and_say_what_they_ran_on(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    old = {"cpu": "an older one", "cores": 64}
    rows = [{"id": "T1", "cases": 7, "date": "2026-01-01"}, {"id": "T4", "cases": 1}]
    out.write_text(json.dumps({"machine": old, "versions": {}, "rows": rows}))
    now = {"id": "T4", "cases": 2, "date": "2026-02-02"}
    write(out, [now, *kept(out, [entry("T4")])])
    written = json.loads(out.read_text())
    before, fresh = written["rows"]
    assert before == {**rows[0], "kept": True, "machine": old, "versions": {}}
    assert fresh == now
    assert written["machine"] != old

    write(out, kept(out, [entry("T9")]))
    assert [row["id"] for row in json.loads(out.read_text())["rows"]] == ["T1", "T4"]
    again = json.loads(out.read_text())["rows"]
    assert (again[0]["machine"], again[0]["date"]) == (old, "2026-01-01")
    assert "machine" not in again[1], "said once, at the top"
