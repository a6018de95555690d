"""Attention of the Shakespeare character model turned into Hyena, and what it is compared with.

    python -m experiments.convert --seeds 1 2 3      # ten minutes of a core a seed; killed, it goes on
    python -m experiments.convert --report           # the table, JSON and plot of the runs there are

The attention model is that of ``examples/shakespeare/train.py --mixer attention``. Every other run gets a fifth of its
training tokens: conversions from each start, one that keeps a layer, the same architecture without a conversion, and
attention itself trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hyena
from experiments.convert.plot import draw
from experiments.shared.record import where
from hyena.conversion.optimizer import Optimizer
from hyena.conversion.run import CLIP
from hyena.filters import HyenaFilter

HERE = Path(__file__).resolve().parent
SHAKESPEARE = HERE.parents[1] / "examples" / "shakespeare"
sys.path.insert(0, str(SHAKESPEARE))

from checkpoint import resume, save  # noqa: E402
from corpus import Corpus, load_corpus, random_batch  # noqa: E402
from settings import Settings  # noqa: E402
from trainer import Trainer  # noqa: E402

FREQUENCY = 1.0  # of the sines of the filters that are taught
SHARE = 5  # of the attention model's training tokens, one in this many
WORDS = {
    "attention": "the attention model",
    "converted": "converted, started from attention",
    "hybrid": "the same, the worst layer kept as attention",
    "filters": "converted, filters alone started from attention",
    "random": "converted, random start",
    "swapped": "swapped for random Hyena, trained on the labels alone",
    "scratch": "Hyena from scratch",
    "continued": "the attention model, trained on",
}


def trained(settings: Settings, corpus: Corpus, folder: Path) -> Trainer:
    """A model trained as the main job does, or gone on with."""
    trainer = Trainer(settings, corpus, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    resume(trainer, folder / "checkpoint.pt")
    for _ in tqdm(range(trainer.step, settings.steps), desc=folder.name, unit="step"):
        trainer.advance()
        if trainer.step % 100 == 0 or trainer.step == settings.steps:
            save(trainer, folder / "checkpoint.pt")
    return trainer


def conversions(steps: int) -> dict[str, dict[str, Any]]:
    """Runs by name, and the keywords of hyena.convert, for an attention model that was trained for ``steps``."""
    given = steps // SHARE
    taught = given // 4  # the layers one by one
    both = {"layer_steps": taught, "logit_steps": given - taught}
    return {
        "converted": {"start": "attention", **both},
        "hybrid": {"start": "attention", **both, "keep_worst": 1},
        "random": {"start": "random", **both},
        "swapped": {"start": "random", "layer_steps": 0, "logit_steps": given, "label_weight": 1.0},
        "filters": {"start": "filters", **both},
    }


def batches(corpus: Corpus, settings: Settings) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end, the same in every run of a seed."""
    generator = torch.Generator().manual_seed(1000 + settings.seed)
    while True:
        yield random_batch(corpus.train, settings.batch, settings.context, generator)


def converted(name: str, teacher: Trainer, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """One of CONVERSIONS, of a fresh copy of the attention model."""
    trainer = copied(teacher)
    torch.manual_seed(teacher.settings.seed)
    report = hyena.convert(
        trainer.model,
        batches(corpus, teacher.settings),
        filter=partial(HyenaFilter, freq=FREQUENCY),
        checkpoint=folder,
        save_every=50,
        **conversions(teacher.settings.steps)[name],
    )
    print(report)
    return {"validation_loss": trainer.evaluate(), "tokens": report.tokens["total"], "report": report.to_dict()}


def copied(teacher: Trainer) -> Trainer:
    """A fresh copy of the attention model."""
    trainer = Trainer(teacher.settings, teacher.corpus, torch.device("cpu"))
    trainer.model.load_state_dict(teacher.model.state_dict())
    return trainer


def continued(teacher: Trainer, corpus: Corpus) -> float:
    """The loss of the attention model after as many steps more, on the labels, with the optimizer of a conversion."""
    trainer, steps = copied(teacher), teacher.settings.steps // SHARE
    optimizer = Optimizer(trainer.model, 1e-3, 0.0, steps, CLIP)
    given = batches(corpus, teacher.settings)
    for _ in tqdm(range(steps), desc="continued", unit="step"):
        trainer.model.loss(*next(given)).backward()
        optimizer.step()
    return trainer.evaluate()


def run(settings: Settings, corpus: Corpus, out: Path, names: list[str]) -> None:
    """The runs of a seed that have no result yet."""
    seed = settings.seed
    folder = out / f"seed-{seed}"
    teacher = trained(settings, corpus, folder / "attention")
    tokens = settings.steps * settings.batch * settings.context
    for name in ["attention", *names]:
        path = folder / f"{name}.json"
        if path.exists():
            continue
        print(f"seed {seed}: {WORDS[name]}", flush=True)
        if name == "attention":
            found = {"validation_loss": teacher.evaluate(), "tokens": tokens}
        elif name == "scratch":
            hyena_settings = dataclasses.replace(settings, mixer="hyena", steps=settings.steps // SHARE)
            loss = trained(hyena_settings, corpus, folder / name).evaluate()
            found = {"validation_loss": loss, "tokens": tokens // SHARE}
        elif name == "continued":
            found = {"validation_loss": continued(teacher, corpus), "tokens": tokens // SHARE}
        else:
            found = converted(name, teacher, corpus, folder / name)
        print(f"seed {seed}: {WORDS[name]}: validation loss {found['validation_loss']:.4f}", flush=True)
        path.write_text(json.dumps(found | where(), indent=1) + "\n")


def collect(out: Path, settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """The results of all seeds, with means and what they are to be within."""
    seeds: dict[str, dict[str, Any]] = {}
    for folder in sorted(out.glob("seed-*")):
        found = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in WORDS
            if (folder / f"{name}.json").exists()
        }
        for each in found.values():  # the objective of every step stays in the run's own file
            each.get("report", {}).pop("history", None)
        if found:
            seeds[folder.name.removeprefix("seed-")] = found
    losses = {name: {s: runs[name]["validation_loss"] for s, runs in seeds.items() if name in runs} for name in WORDS}
    over = {
        name: {s: loss - losses["attention"][s] for s, loss in each.items()}
        for name, each in losses.items()
        if name != "attention"
    }
    return {
        "what": "validation loss in nats a character, the whole split in windows that do not overlap",
        "words": WORDS,
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "seed"},
        "conversions": conversions(settings.steps),
        "filter": {"class": "HyenaFilter", "freq": FREQUENCY},
        "data": {"file": corpus.path.name, "sha256": corpus.sha256},
        "validation_loss": {name: summary(each) for name, each in losses.items() if each},
        "over_attention": {name: summary(each) for name, each in over.items() if each},
        "seeds": seeds,
    }


def summary(each: dict[str, float]) -> dict[str, Any]:
    """Mean, least and largest, and each seed's."""
    values = list(each.values())
    return {"mean": sum(values) / len(values), "least": min(values), "largest": max(values), "seeds": each}


def report(out: Path, results: Path, settings: Settings, corpus: Corpus) -> None:
    """Prints the table, and writes the JSON and the plot."""
    found = collect(out, settings, corpus)
    print(f"{'':<55} {'loss':>7}  {'over attention, least to largest':>34}")
    for name, loss in found["validation_loss"].items():
        over = found["over_attention"].get(name)
        spread = "" if over is None else f"{over['mean']:+.4f}  ({over['least']:+.4f} to {over['largest']:+.4f})"
        print(f"{WORDS[name]:<55} {loss['mean']:>7.4f}  {spread:>34}  {len(loss['seeds'])} seeds")
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, results / "results.png")
    print(f"results  {results / 'results.json'}\nplot     {results / 'results.png'}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    runs = [name for name in WORDS if name != "attention"]
    parser.add_argument("--runs", nargs="+", choices=runs, default=runs, metavar="RUN", help=f"of {', '.join(runs)}")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the attention model; the rest get a fifth")
    parser.add_argument(
        "--out", type=Path, default=Path("out/convert"), help="folder of states and of each run's result"
    )
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and results.png")
    parser.add_argument("--report", action="store_true", help="run nothing, only collect what there is")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(mixer="attention", steps=options.steps)
    corpus = load_corpus(SHAKESPEARE / "tinyshakespeare.txt", settings.context)
    if not options.report:
        for seed in options.seeds:
            run(dataclasses.replace(settings, seed=seed), corpus, options.out, options.runs)
    report(options.out, options.results, settings, corpus)


if __name__ == "__main__":
    main()
