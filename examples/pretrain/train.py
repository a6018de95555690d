"""Trains a language model of text or DNA on one process or many: data, context and tensor parallel, elastic.

    python examples/pretrain/train.py                                  # one CPU process, tinyshakespeare
    python examples/pretrain/train.py --data examples/dna/*.fa.gz      # a chromosome
    torchrun --nproc-per-node 4 --max-restarts 3 examples/pretrain/train.py --dp 2 --cp 2

Axes of the mesh: --dp spreads rows, --cp positions, both of them weights too; --tp spreads channels. Killed and started
again with the same options, on as many processes or others, it goes on from the last whole checkpoint; under torchrun
by itself. Leaves in --out: checkpoints/, metrics.jsonl, loss.png, and data-<rank>.jsonl, which blocks of the data a
process saw in which step.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path

try:
    import report
    from processes import Team, joined, make_mesh
    from settings import Settings
    from torch import distributed as dist
    from tqdm import tqdm
    from trainer import Trainer, ids

    from hyena.distributed import Checkpoints

except ImportError as e:
    sys.exit(f'{e}. Install what this example needs with: pip install "hyena[train]", or ".[train]" in the repository')


def parse(arguments: list[str] | None) -> argparse.Namespace:
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for f in dataclasses.fields(Settings):
        more = {"action": "store_true"} if f.type == "bool" else {"type": {"int": int, "float": float}.get(f.type, str)}
        more |= {"nargs": "+"} if f.name == "data" else {}
        shown = "tinyshakespeare.txt" if f.name == "data" else f.default
        text = f"{f.metadata['help']} (default: {shown})"
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=f.default, help=text, **more)
    parser.add_argument("--dp", type=int, default=0, help="processes that rows are spread over (default: all others)")
    parser.add_argument("--cp", type=int, default=1, help="processes that positions are spread over (default: 1)")
    parser.add_argument("--tp", type=int, default=1, help="processes that channels are spread over (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("out/pretrain"), help="folder (default: out/pretrain)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (default: 50)")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints that are kept (default: 2)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for other processes (default: 600)")
    parser.add_argument("--restart", action="store_true", help="begin again, even if --out has a checkpoint")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        with joined(options.timeout) as team:
            run(options, team)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last checkpoint")
    except ValueError as e:
        sys.exit(f"train.py: {e}")


def run(options: argparse.Namespace, team: Team) -> None:
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    settings = Settings(**{**fields, "data": tuple(options.data)})
    for name in ("save_every", "keep"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    mesh = make_mesh(team, options.dp, options.cp, options.tp)
    if options.restart and team.rank == 0 and options.out.exists():
        shutil.rmtree(options.out)
    trainer = Trainer(settings, mesh, team)
    folder = options.out / "checkpoints"
    checkpoints = Checkpoints(folder, trainer.model, trainer.optimizer, keep=options.keep)
    if team.rank == 0:
        report.claim(options.out, settings.identity(), begun=bool(checkpoints.steps()))
    dist.barrier()  # nobody loads what is of another run
    step, notes = checkpoints.load() or (0, None)
    trainer.begin(notes)
    if team.rank == 0:
        report.cut(options.out, trainer.step)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        print(f"{settings.mixer}, {parameters:,} parameters; mesh {dict(zip(mesh.mesh_dim_names, mesh.shape))}")
        if step > 0:
            print(f"going on from {checkpoints.path(step)} after step {trainer.step} of {settings.steps}", flush=True)
    dist.barrier()  # nobody writes lines before the old ones are cut
    train(trainer, checkpoints, options.save_every, options.out, team)
    if team.rank == 0:
        last = report.read(options.out / report.METRICS)[-1]
        picture = report.plot(options.out, f"{settings.mixer}, {settings.layers} layers of width {settings.width}")
        print(f"loss {last['loss']:.4f} after {last['tokens']:,} tokens")
        for what, where in (("checkpoint", checkpoints.path(trainer.step)), ("loss curve", picture)):
            print(f"{what:<10} {where}")


def train(trainer: Trainer, checkpoints: Checkpoints, save_every: int, out: Path, team: Team) -> None:
    """Takes the steps that are left."""
    mesh, steps = trainer.mesh, trainer.settings.steps
    lines = report.Lines(out / report.METRICS) if team.rank == 0 else None
    sees = mesh["cp"].get_local_rank() == mesh["tp"].get_local_rank() == 0  # the others see the same blocks
    seen = report.Lines(out / f"data-{team.rank}.jsonl") if sees else None
    with tqdm(total=steps, initial=trainer.step, unit="step", mininterval=0.5, disable=team.rank > 0) as bar:
        while trainer.step < steps:
            began, before = time.perf_counter(), trainer.tokens
            said = trainer.advance()
            rate = (trainer.tokens - before) / (time.perf_counter() - began)
            if lines is not None:
                lines.add(**said, tokens_per_second=round(rate), processes=team.size)
            if seen is not None:
                seen.add(step=trainer.step, blocks=list(ids(trainer.mine)))
            bar.set_postfix_str(
                f"loss {said['loss']:.3f}, rows of {said['length']}, {rate:,.0f} tokens/s", refresh=False
            )
            bar.update()
            if trainer.step == steps or trainer.step % save_every == 0:
                checkpoints.save(trainer.step, trainer.notes(), asynchronous=True)
    team.at("writing the last checkpoint")
    checkpoints.wait()
    dist.barrier()


if __name__ == "__main__":
    main()
