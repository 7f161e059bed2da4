"""The table of docs/metrics.md: `python -m inference_node.telemetry.table` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from inference_node.telemetry.series import SERIES, Series

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- series -->\n", "<!-- end -->\n"


def table() -> str:
    """Every series, in the catalogue's order."""
    rows = ["| name | type | unit | labels | meaning |", "|---|---|---|---|---|"]
    for one in SERIES:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{one.name}` | {one.kind.value} | {_unit(one)} | {labels} | {one.help} |")
    return "\n".join(rows) + "\n"


def renewed(page: str) -> str:
    """`page` with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _unit(one: Series) -> str:
    name = one.name.removesuffix("_total")
    for unit in ("seconds", "bytes", "tokens", "pages", "blocks"):
        if name.endswith(f"_{unit}"):
            return unit
    return {"kv_cache_usage_perc": "share", "lora_requests_info": "seconds since 1970"}.get(
        name.removeprefix("vllm:"), "" if name.endswith("_info") else "number"
    )


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}: {len(SERIES)} series\n")
