"""What was predicted of the mixing step (predictions.json) beside what the section ``bandwidth`` measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PREDICTED: dict[str, dict[str, list[float]]] = json.loads(
    (Path(__file__).resolve().parent / "predictions.json").read_text()
)


def predicted_rows(sections: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of gpu.py's table, for the lengths that were measured; no verdict: neither side is a bar."""
    rows = sections.get("bandwidth", {}).get("rows", [])
    took = {r["what"]: r["ms"] for r in rows if r.get("ms") is not None}
    lines = []
    for direction in ("forward", "backward"):
        for length, (least, most) in PREDICTED[direction].items():
            forward = took.get(f"recurrence forward bf16 L={length}")
            both = took.get(f"recurrence forward+backward bf16 L={length}")
            if forward is None or (direction == "backward" and both is None):
                continue
            ms = forward if direction == "forward" else both - forward
            off = (
                ""
                if least <= ms <= most
                else f"{ms / least:.2f} of the least"
                if ms < least
                else f"{ms / most:.2f} of the most"
            )
            lines.append(
                (
                    "predictions",
                    f"recurrence {direction} bf16 L={length}",
                    f"{ms:.3g} ms",
                    f"{least:g} to {most:g}",
                    off,
                )
            )
    return lines
