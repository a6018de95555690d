"""The plots: matrices on recall, filters before and after training, loss of cut filters."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shared import plots, runs

Run = dict[str, Any]
TITLES = {"recall": "recall", "characters": "Shakespeare", "dna": "DNA"}


def matrices(found: list[Run], path: Path) -> None:
    """``|H(u)|`` and the attention map of one example, layer by layer."""
    drawn = [run for run in found if "pictures" in run["result"]]
    if not drawn:
        return
    made, panels = plots.figure(len(drawn[0]["result"]["pictures"]), len(drawn), size=(3.6, 3.7))
    pairs = [(run, each) for run in drawn for each in run["result"]["pictures"]]
    for panel, (run, each) in zip(panels, pairs, strict=True):
        tokens = run["result"]["tokens"]
        levels = np.frombuffer(base64.b64decode(each["levels"]), np.uint8).reshape(len(tokens), len(tokens))
        panel.imshow(np.sqrt(levels / 255.0), cmap="magma", interpolation="nearest")  # the root shows what is faint
        values = [i + 1 for i, token in enumerate(tokens[:-1]) if token == tokens[-1]]
        panel.plot(values, [-0.01 * len(tokens) - 0.5] * len(values), "v", color="C2", ms=4, clip_on=False)
        panel.set_ylim(len(tokens) - 0.5, -0.5)
        panel.set(title=f"{run['settings']['mixer']}, layer {each['layer']}, {each['what']}\n")
        panel.grid(visible=False)
    made.suptitle(
        "recall, one example: root of |H(u)| and of the attention weights; rows: outputs, columns: inputs;\n"
        "triangles: values of the key that the last row asks for"
    )
    plots.save(made, path)


def filters(found: list[Run], path: Path) -> None:
    """Taps of the first layer's first channels, spectra, and the energy that has come by a lag."""
    drawn = [run for run in found if "taps" in run["result"].get("after", {})]
    if not drawn:
        return
    made, panels = plots.figure(4, len(drawn), size=(4.2, 3.2))
    for row, run in enumerate(drawn):
        taps_before, taps_after, spectra, energies = panels[4 * row : 4 * row + 4]
        title = TITLES[run["settings"]["job"]]
        for panel, when in ((taps_before, "before"), (taps_after, "after")):
            for channel in run["result"][when]["taps"][0]:
                panel.plot(channel, lw=1)
            panel.set(title=f"{title}: taps {when}, layer 1, four channels", xlabel="lag")
        for when, style in (("before", "--"), ("after", "-")):
            numbers = run["result"][when]
            for layer, (power, energy) in enumerate(zip(numbers["spectrum"], numbers["energy"], strict=True)):
                look = {"color": f"C{layer}", "ls": style, "label": f"layer {layer + 1}, {when}"}
                spectra.plot([(i + 0.5) * 0.5 / len(power) for i in range(len(power))], power, lw=1, **look)
                energies.plot(numbers["lags"], energy, marker=".", lw=1, **look)
        spectra.set(title=f"{title}: power", xlabel="cycles a position", yscale="log")
        energies.set(title=f"{title}: energy within so many taps", xlabel="taps", ylim=(0, 1.03))
        energies.set_xscale("log", base=2)
        energies.legend(fontsize=6)
    plots.save(made, path)


def cuts(found: list[Run], path: Path) -> None:
    """Loss over the taps that are left, a panel a job."""
    jobs: dict[str, list[Run]] = {}
    for run in found:
        if "cut" in run["result"]:
            jobs.setdefault(run["settings"]["job"], []).append(run)
    if not jobs:
        return
    made, panels = plots.figure(len(jobs), size=(4.6, 3.6))
    for panel, (job, seeds) in zip(panels, jobs.items(), strict=True):
        taps = [each["taps"] for each in seeds[0]["result"]["cut"]]
        rows = [runs.spread(run["result"]["cut"][i]["loss"] for run in seeds) for i in range(len(taps))]
        plots.line(panel, taps, rows, "filters cut")
        panel.axhline(rows[-1]["mean"], color="grey", lw=0.8, label="whole filters")
        panel.set(title=TITLES[job], xlabel="taps left in every layer", ylabel="held-out loss (nats)")
        panel.set_xscale("log", base=2)
        panel.legend()
    plots.save(made, path)
