"""Language models: Hyena beside H3, attention and hybrids at equal parameters, on Shakespeare and WikiText-2.

    python -m experiments.language                    # forty minutes of a core; killed, it goes on
    python -m experiments.language --report           # table, JSON and plot of what there is
    python -m experiments.language --full --device cuda

The claim (arXiv 2302.10866, section 4.2): Hyena reaches attention's perplexity, for fewer operations, without any
attention. Every model has as many parameters as Hyena, sees the same batches and takes as many steps. Losses are of
the whole test part; beside them stand n-grams, operations by the paper's formula, and what a step takes on this
machine, for reading the same curves at equal operations and at equal time.

WikiText-2 is trained on its validation file and tested on its test file, in 2048 pieces of words: bits a byte, and
perplexities a word of the whole text, whatever the pieces. ``--full`` trains nanoGPT's size for a GPU on these texts,
and the published 125 M size on WikiText-103, if ``out/data/wikitext-103`` has its ``train.txt`` and ``test.txt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.language.grid import grid
from experiments.language.plot import draw
from experiments.language.tables import lines, table
from experiments.language.work import work
from experiments.shared import runs

HERE = Path(__file__).resolve().parent


def report(found: list[dict[str, Any]], results: Path) -> None:
    """Prints the tables, writes ``results.json`` and the plot."""
    tables = {text: table(found, text) for text in dict.fromkeys(run["settings"]["text"] for run in found)}
    for each in tables.values():
        print("\n".join(lines(each)))
    what = (
        "loss in nats a token over the whole test part, bits a byte of it, perplexity a word of it; operations of the "
        "training; seconds of a training step with the models taking turns"
    )
    written = runs.write(results / "results.json", what, found, tables=tables)
    print(f"results  {results / 'results.json'}")
    draw(written, results / "results.png")


if __name__ == "__main__":
    runs.command(__doc__, here=HERE, grid=grid, work=work, report=report)
