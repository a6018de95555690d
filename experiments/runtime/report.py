"""Curves of what was measured here and of the records of GPUs; the table, JSON and plot of them.

A curve is a layer on a machine in a mode, ``{length: {mean, least, largest, seeds}}`` in seconds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from experiments.runtime.layers import BENCHMARKS
from experiments.runtime.plot import draw
from experiments.shared import runs

Curve = dict[int, dict[str, Any]]
MODES = ("forward", "training")
RIVALS = ("attention", "flash", "default")
NOISE = 0.03  # of a time that was measured once


def report(found: list[dict[str, Any]], results: Path) -> None:
    """Prints the tables and writes everything."""
    machines = [*measured(found), *recorded(BENCHMARKS / "results")]
    for machine in machines:
        machine["crossover"] = {
            f"{mode}, {rival}": crossover(machine["seconds"][mode]["hyena"], machine["seconds"][mode][rival])
            for mode in MODES
            for rival in RIVALS
            if rival in machine["seconds"][mode]
        }
        source = f" ({machine['record']}, commit {machine['commit']})" if "record" in machine else ""
        print(f"\n{machine['name']}{source}, width {machine['width']}, {machine['dtype']}")
        print("milliseconds; x: attention over Hyena")
        for mode in MODES:
            _print(machine, mode)
    what = "seconds of a call by length: mean, least and largest of the seeds' medians; peak bytes beyond the inputs"
    runs.write(results / "results.json", what, found, machines=machines)
    draw(machines, results / "results.png")


def measured(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, by machine."""
    machines: dict[str, dict[str, Any]] = {}
    for run in found:
        made, settings = run["made"], run["settings"]
        cpu = made["device"] == "cpu"
        name = f"{made['processor']}, {made['threads']} threads" if cpu else made["device"]
        machine = machines.setdefault(
            name,
            {
                "name": name,
                "width": settings["width"],
                "dtype": "float32" if cpu else "bfloat16",
                "seconds": {mode: {} for mode in MODES},
                "bytes": {mode: {} for mode in MODES},
            },
        )
        mode = MODES[settings["training"]]
        if settings["what"] == "memory":
            machine["bytes"][mode][settings["layer"]] = {int(k): v for k, v in run["result"]["bytes"].items()}
            continue
        for layer, seconds in run["result"]["seconds"].items():
            machine["seconds"][mode].setdefault(layer, {}).setdefault(settings["length"], []).append(seconds)
        for layer, count in run["result"].get("bytes", {}).items():
            machine["bytes"][mode].setdefault(layer, {})[settings["length"]] = count
    for machine in machines.values():
        for curves in machine["seconds"].values():
            for layer, curve in curves.items():
                curves[layer] = {length: runs.spread(values) for length, values in sorted(curve.items())}
    return [machine for machine in machines.values() if machine["seconds"]["forward"] or machine["seconds"]["training"]]


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The attention sections of the GPU records in a folder."""
    machines = []
    for path in sorted(folder.glob("gpu-*.json")):
        section = json.loads(path.read_text()).get("sections", {}).get("attention")
        if section is None:
            continue
        seconds: dict[str, dict[str, Curve]] = {mode: {} for mode in MODES}
        width = 0
        for row in section["rows"]:
            mode, number, length = re.fullmatch(r"(forward|training) .*D=(\d+) L=(\d+)", row["what"]).groups()  # type: ignore[union-attr]
            width = int(number)
            for layer in ("hyena", "flash", "default"):
                if f"{layer} ms" in row:
                    seconds[mode].setdefault(layer, {})[int(length)] = runs.spread([row[f"{layer} ms"] / 1e3])
        about = section["machine"]
        machines.append(
            {
                "name": about["device"],
                "width": width,
                "dtype": "bfloat16",
                "record": path.name,
                "commit": about["commit"],
                "seconds": seconds,
                "bytes": {mode: {} for mode in MODES},
            }
        )
    return machines


def crossover(hyena: Curve, rival: Curve) -> int | None:
    """The least length measured from which on Hyena is the faster one; None if it is not at the longest."""
    found = None
    for length in sorted(set(hyena) & set(rival), reverse=True):
        if wins(hyena[length], rival[length]) != "Hyena":
            break
        found = length
    return found


def wins(hyena: dict[str, Any], rival: dict[str, Any]) -> str:
    """Who is faster: whose slowest seed is faster than the other's fastest; of single times, by more than NOISE."""
    margin = 1 + NOISE if hyena["seeds"] == rival["seeds"] == 1 else 1.0
    if rival["largest"] * margin < hyena["least"]:
        return "attention"
    return "Hyena" if hyena["largest"] * margin < rival["least"] else "even"


def _print(machine: dict[str, Any], mode: str) -> None:
    curves, peaks = machine["seconds"][mode], machine["bytes"][mode]
    rivals = [name for name in RIVALS if name in curves]
    head = ["length", "hyena", *(f"{r}{c}" for r in rivals for c in ("", " x", " faster")), *(f"{n} MB" for n in peaks)]
    lines = [head]
    for length, hyena in curves.get("hyena", {}).items():
        line = [str(length), _ms(hyena)]
        for rival in rivals:
            other = curves[rival].get(length)
            line += (
                ["", "", ""]
                if other is None
                else [_ms(other), f"{other['mean'] / hyena['mean']:.2f}", wins(hyena, other)]
            )
        line += ["-" if peaks[n].get(length) is None else f"{peaks[n][length] / 1e6:.1f}" for n in peaks]
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print(mode)
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for rival in rivals:
        at = machine["crossover"][f"{mode}, {rival}"]
        said = f"is faster than {rival} from {at} on" if at else f"is not faster than {rival} at the longest length"
        print(f"Hyena {said}")


def _ms(row: dict[str, Any]) -> str:
    if row["seeds"] == 1:
        return f"{row['mean'] * 1e3:.3g}"
    return f"{row['mean'] * 1e3:.3g} ({row['least'] * 1e3:.3g}-{row['largest'] * 1e3:.3g})"
