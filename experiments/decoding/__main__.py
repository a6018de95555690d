"""Distilled language models: what fewer modes cost in loss, and what a token costs, exact, distilled and otherwise.

    python -m experiments.decoding                    # six minutes of a core, after experiments.language
    python -m experiments.decoding --report           # table, JSON and plot of what there is
    python -m experiments.decoding --full --device cuda

The claim (arXiv 2310.18780): the long filters of a trained model are sums of few decaying oscillations, with which it
decodes in constant time and memory, 1.5 times as fast as Hyena and 10 times as fast as attention at 1.3 B parameters.
The Hyena models of ``experiments.language`` on Shakespeare are distilled into 1 to 64 modes a filter; they are taken
from its default folder, or trained first if they are not there. Then whole models of the same shape make tokens at the
end of longer and longer contexts: by exact steps, distilled, by running the whole context again for every token, and
attention with a cache; and H3, whose filters are such sums from the start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.decoding.plot import draw
from experiments.decoding.tables import distilled, lines, speeds
from experiments.decoding.work import work
from experiments.language.grid import grid as language_grid
from experiments.shared import runs

HERE = Path(__file__).resolve().parent
SIZES: dict[str, dict[str, Any]] = {
    "toy": {"modes": [1, 4], "contexts": [16, 32], "batches": [1]},
    "default": {"modes": [1, 2, 4, 8, 16, 32, 64], "contexts": [256, 1024, 4096], "batches": [1, 16]},
    "full": {"modes": [1, 2, 4, 8, 16, 32, 64], "contexts": [256, 1024, 4096, 16384, 65536], "batches": [1, 16]},
}


def grid(size: str, seeds: list[int]) -> list[runs.Settings]:
    """Every run of a size."""
    numbers = SIZES[size]
    hyena = [s for s in language_grid(size, seeds) if s.get("model") == "hyena" and s["text"] == "shakespeare"]
    shape = {name: hyena[0][name] for name in ("width", "layers", "heads")}
    return [
        *({"part": "distill", "size": size, "modes": numbers["modes"], "seed": s["seed"], "trained": s} for s in hyena),
        *(
            {"part": "speed", "context": context, "batch": batch, "modes": 16, **shape}
            for batch in numbers["batches"]
            for context in numbers["contexts"]
        ),
    ]


def report(found: list[dict[str, Any]], results: Path) -> None:
    """Prints the tables, writes ``results.json`` and the plot."""
    tables = {"distilled": distilled(found), "speeds": speeds(found)}
    print("\n".join(lines(tables)))
    what = (
        "loss in nats a character over the whole validation part of Shakespeare, of distilled models; relative l2 "
        "errors of their filters; milliseconds a token of whole models, over the second half of each context"
    )
    written = runs.write(results / "results.json", what, found, tables=tables)
    print(f"results  {results / 'results.json'}")
    draw(written, results / "results.png")


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
