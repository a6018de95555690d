"""Trains a character-level language model, samples from it, and leaves a checkpoint, a loss curve and metrics.json.

    python examples/shakespeare/train.py                      # Hyena on Tiny Shakespeare, nanoGPT's CPU setting
    python examples/shakespeare/train.py --mixer attention    # the same model with attention
    python examples/shakespeare/train.py --data my.txt        # any text file

Killed and started again with the same options, it goes on where it was. Started again when it is done, it evaluates
and samples again: with another --prompt, for example.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import sys
from pathlib import Path

try:
    import torch
    from checkpoint import resume, save
    from corpus import load_corpus
    from report import plot_losses, write_json, write_text
    from settings import Settings
    from tqdm import tqdm
    from trainer import Trainer

    import hyena
    from hyena.command.folder import claimed
    from hyena.generation import generate_by_rerun
except ImportError as e:
    sys.exit(f'{e}. Install what this example needs with: pip install "hyena[train]", or ".[train]" in the repository')

DATA = Path(__file__).resolve().parent / "tinyshakespeare.txt"
# A model this small gains little from more threads, its matrices are 768 x 128; and threads that wait for each other on
# cores that others use too are many times slower.
THREADS = 1

HELP = {
    "mixer": "hyena or attention",
    "steps": "optimizer steps; the learning rate falls over all of them",
    "batch": "windows in a batch",
    "context": "characters in a window",
    "heads": "heads of the attention",
    "mlp": "swiglu, geglu, gelu or gelu_tanh",
    "min_lr": "learning rate at the end",
    "clip": "largest norm of the gradient, 0 for no limit",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains a character-level language model with Hyena or attention.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="a UTF-8 text file")
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: out/shakespeare/, named by settings)"
    )
    parser.add_argument(
        "--restart", action="store_true", help="begin again, even if --out has a checkpoint to go on from"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    parser.add_argument("--threads", type=int, default=THREADS, help="CPU threads")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--eval-every", type=int, default=500, help="steps between evaluations, 0 for one at the end")
    parser.add_argument("--prompt", default="", help="what the sample goes on from; a new line if empty")
    parser.add_argument("--sample", type=int, default=500, help="characters to sample at the end")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sample")
    for f in dataclasses.fields(Settings):
        kind = {"str": str, "int": int, "float": float}[f.type]
        name = f"--{f.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=f.default, help=HELP.get(f.name, " "))
    return parser.parse_args(arguments)


def default_out(settings: Settings, data: Path) -> Path:
    """A folder for each set of settings, so that trying one never ends another run."""
    parts = [settings.mixer] + ([] if data == DATA else [data.stem])
    parts += [f"{k}{v}" for k, v in {"seed": settings.seed, **settings.changed()}.items() if k != "mixer"]
    return Path("out/shakespeare") / "-".join(parts)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    # What can be wrong with the input is said in one line, before anything is trained.
    try:
        check(options)
        settings = Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)})
        torch.set_num_threads(options.threads)
        device = _device(options.device)
        corpus = load_corpus(options.data, settings.context)
        prompt = corpus.encode(options.prompt) if options.prompt else corpus.start
        settings.check_memory(len(corpus.vocabulary))
        trainer = Trainer(settings, corpus, device)
        with claimed(options.out or default_out(settings, options.data)) as out:
            run(trainer, options, prompt, out)
    except KeyboardInterrupt:
        sys.exit("\nstopped")
    except (ValueError, ArithmeticError, OSError) as e:
        sys.exit(f"train.py: {e}")
    except (RuntimeError, MemoryError) as e:
        if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(e):
            raise
        sys.exit("train.py: out of memory; a smaller --batch, --context or --width needs less")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for an option that nothing else looks at before training."""
    for name, least in {"threads": 1, "save_every": 1, "eval_every": 0, "sample": 0}.items():
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(options, name)}")
    # Each thread has a stack: tens of thousands end the process without a word.
    most = max(64, 4 * (os.cpu_count() or 1))
    if options.threads > most:
        raise ValueError(f"threads={options.threads}, on a machine with {os.cpu_count()} processors: at most {most}")
    if not 0 <= options.temperature < math.inf:
        raise ValueError(f"temperature must be a number that is not negative, got {options.temperature}")


def run(trainer: Trainer, options: argparse.Namespace, prompt: torch.Tensor, out: Path) -> None:
    """Trains, or goes on training, and leaves everything in ``out``."""
    settings, corpus, checkpoint = trainer.settings, trainer.corpus, out / "checkpoint.pt"
    resumed = not options.restart and resume(trainer, checkpoint)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{settings.mixer}, {parameters:,} parameters, on {options.data.name}: {corpus.train.numel():,} characters to "
        f"train on, {corpus.validation.numel():,} to validate, {len(corpus.vocabulary)} different"
    )
    if resumed:
        print(f"going on from {checkpoint} after step {trainer.step} of {settings.steps}")
    try:
        train(trainer, checkpoint, options.save_every, options.eval_every)
    except KeyboardInterrupt:
        then = f"goes on from {checkpoint}" if checkpoint.exists() else "begins again: there is no checkpoint yet"
        sys.exit(f"\nstopped after step {trainer.step}; the same command {then}")

    text = sample(trainer, prompt, options.sample, options.temperature)
    print(f"\n{text}\n")
    write_text(text, out / "sample.txt")
    loss = trainer.validation_losses[-1][1]
    title = f"{options.data.name}, {settings.mixer}, {parameters:,} parameters"
    plot_losses(trainer.train_losses, trainer.validation_losses, title, out / "loss.png")
    write_json(metrics(trainer, options, parameters), out / "metrics.json")
    print(f"validation loss {loss:.4f}, {trainer.tokens_per_second:,.0f} tokens/s in training")
    for name, what in (("checkpoint.pt", "checkpoint"), ("loss.png", "loss curve"), ("metrics.json", "metrics")):
        print(f"{what:<11} {out / name}")


def train(trainer: Trainer, checkpoint: Path, save_every: int, eval_every: int) -> None:
    """Takes the steps that are left, and evaluates at the end of them."""
    steps = trainer.settings.steps
    per_step = trainer.settings.batch * trainer.settings.context
    with tqdm(total=steps, initial=trainer.step, unit="step", smoothing=0.1, mininterval=0.5) as bar:
        while trainer.step < steps:
            loss = trainer.advance()
            if not math.isfinite(loss):
                raise ArithmeticError(f"the loss of step {trainer.step} is {loss}; a lower --lr may help")
            rate = bar.format_dict["rate"]
            speed = f"{rate * per_step:,.0f}" if rate else "…"
            bar.set_postfix_str(f"loss {loss:.3f}, {speed} tokens/s", refresh=False)
            bar.update()
            if trainer.step == steps or (eval_every > 0 and trainer.step % eval_every == 0):
                bar.write(f"step {trainer.step}: validation loss {trainer.evaluate():.4f}")
            if trainer.step == steps or trainer.step % save_every == 0:
                save(trainer, checkpoint)


def sample(trainer: Trainer, prompt: torch.Tensor, length: int, temperature: float) -> str:
    """Text from the model; the same for the same weights and settings."""
    generator = torch.Generator(trainer.device).manual_seed(trainer.settings.seed)
    tokens = generate_by_rerun(
        trainer.model,
        prompt[None].to(trainer.device),
        length,
        window=trainer.settings.context,
        temperature=temperature,
        generator=generator,
    )
    return trainer.corpus.decode(tokens[0]).strip("\n")


def metrics(trainer: Trainer, options: argparse.Namespace, parameters: int) -> dict:
    """Everything that is worth comparing between runs."""
    corpus, settings = trainer.corpus, trainer.settings
    return {
        "validation_loss": trainer.validation_losses[-1][1],
        "training_loss": sum(trainer.train_losses[-100:]) / len(trainer.train_losses[-100:]),
        "parameters": parameters,
        "tokens_per_second": trainer.tokens_per_second,
        "seed": settings.seed,
        "steps": trainer.step,
        "training_seconds": trainer.seconds,
        "settings": dataclasses.asdict(settings),
        "model": trainer.model.config.to_dict(),
        "optimizer": [
            {
                "name": group["name"],
                "lr": rate,
                "weight_decay": group["weight_decay"],
                "parameters": sum(p.numel() for p in group["params"]),
            }
            for rate, group in zip(trainer.rates, trainer.optimizer.param_groups, strict=True)
        ],
        "data": {
            "file": str(options.data),
            "sha256": corpus.sha256,
            "characters": corpus.train.numel() + corpus.validation.numel(),
            "vocabulary": len(corpus.vocabulary),
        },
        "validation": {
            "measure": "mean loss in nats a character, whole split, windows that do not overlap",
            "window": settings.context,
            "windows": (corpus.validation.numel() - 1) // settings.context,
            "history": trainer.validation_losses,
        },
        "device": str(trainer.device),
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "hyena": hyena.__version__},
    }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"the device {name!r} cannot be used here: {str(e).splitlines()[0]}") from None
    return device


if __name__ == "__main__":
    main()
