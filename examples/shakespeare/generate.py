"""Writes text with a model that train.py left, character by character as it comes.

    python examples/shakespeare/generate.py --prompt "ROMEO:"
    python examples/shakespeare/generate.py --checkpoint out/shakespeare/hyena-seed1/checkpoint.pt --temperature 0

Each character costs one step of the model, not a run over all of the text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import torch

    from hyena import distill
    from hyena.generation import stream
    from hyena.models import CausalLM, CausalLMConfig
except ImportError as e:
    sys.exit(f'{e}. Install what this example needs with: pip install "hyena[train]", or ".[train]" in the repository')

# What train.py writes with its default settings, started from the same folder.
CHECKPOINT = Path("out/shakespeare/hyena-seed0/checkpoint.pt")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Text from a model that train.py left.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="what train.py wrote")
    parser.add_argument("--prompt", help="text to go on from (default: a line break)")
    parser.add_argument("--length", type=int, default=1000, help="characters to write")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest character")
    parser.add_argument("--top-k", type=int, help="draw only from this many of the likeliest characters")
    parser.add_argument("--top-p", type=float, help="draw only from the likeliest, with this probability together")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument(
        "--window", type=int, help="characters to start again from when the model's context is full (default: half)"
    )
    parser.add_argument(
        "--distilled",
        type=int,
        metavar="MODES",
        help="use an approximation of so many modes a filter, which steps in constant time and memory",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    return parser.parse_args(arguments)


def load(path: Path, device: str) -> tuple[CausalLM, str]:
    """The model, and the character of each id."""
    saved = torch.load(path, map_location=device, weights_only=True)
    model = CausalLM(CausalLMConfig.from_dict(saved["config"]), device=device)
    model.load_state_dict(saved["model"])
    if unusable := [name for name, p in model.named_parameters() if not p.isfinite().all()]:
        raise ValueError(f"{unusable[0]} has entries that are not finite")
    return model.eval(), saved["vocabulary"]


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for an option that the library does not look at, or not before the model is loaded."""
    for name, least in {"length": 0, "window": 1, "distilled": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if options.seed is not None and not -(1 << 63) <= options.seed < 1 << 64:
        raise ValueError(f"seed must fit 64 bits, got {options.seed}")
    try:
        torch.zeros(1, device=options.device).item()
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"the device {options.device!r} cannot be used here: {str(e).splitlines()[0]}") from None


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)  # a step of a model this small gains nothing from more
    try:
        check(options)
    except ValueError as e:
        sys.exit(f"generate.py: {e}")
    try:
        model, vocabulary = load(options.checkpoint, options.device)
    except FileNotFoundError:
        sys.exit(f"generate.py: {options.checkpoint} does not exist; train.py writes one, and says where")
    except Exception as e:
        reason = f"{type(e).__name__}: {e}".splitlines()[0]
        sys.exit(f"generate.py: {options.checkpoint} is not a checkpoint of train.py ({reason})")
    prompt = options.prompt or ("\n" if "\n" in vocabulary else vocabulary[0])
    unknown = sorted(set(prompt) - set(vocabulary))
    if unknown:
        sys.exit(f"generate.py: the model knows no {', '.join(map(repr, unknown))}")
    try:
        if options.distilled is not None:
            model = distill(model, modes=options.distilled)
        characters = stream(
            model,
            [[vocabulary.index(c) for c in prompt]],
            options.length,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            window=options.window or max(1, model.config.l_max // 2),
        )
        print(prompt.lstrip("\n") if options.prompt is None else prompt, end="", flush=True)
        for token in characters:
            print(vocabulary[int(token)], end="", flush=True)
    except ValueError as e:
        sys.exit(f"generate.py: {e}")
    except KeyboardInterrupt:
        pass
    print()


if __name__ == "__main__":
    main()
