"""What a token costs when a transformers model generates with Hyena in attention's place.

    python benchmarks/transformers_decoding.py                     # an 8K context, four layers of width 256
    python benchmarks/transformers_decoding.py --context 1024      # nothing is written

GPT-2 after ``replace_attention``, batch 1, on one CPU thread or a GPU: greedy ``generate`` with its cache, which steps
from states, and without, which runs the whole sequence again for each token; and this library's own ``generate`` on a
``CausalLM`` of the same sizes. A token is timed as the difference between two calls that make different numbers of
tokens, so that the prompt's pass is not in it. Bars: at least 20 times faster than running again, at most twice as slow
as ``CausalLM.generate``. Writes results/transformers-decoding.json and .png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from measure import RESULTS, machine, table, write

from hyena import models, replace_attention

VOCABULARY = 256
BARS = {"rerun": ("at least", 20.0), "own generate": ("at most", 2.0)}


def hyena_gpt2(context: int, width: int, layers: int) -> torch.nn.Module:
    """GPT-2 with new Hyena operators, with room for the context and what is generated."""
    import transformers

    sizes = {"vocab_size": VOCABULARY, "n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": 2 * context}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    replace_attention(model)
    return model


def causal_lm(context: int, width: int, layers: int) -> torch.nn.Module:
    """This library's model of the same sizes."""
    config = models.CausalLMConfig(vocab_size=VOCABULARY, l_max=2 * context, d_model=width, num_layers=layers)
    return models.CausalLM(config).eval()


def seconds_a_token(generate: Callable[[int], object], few: int, many: int, rounds: int) -> float:
    """Median over rounds of the time that ``many - few`` more tokens take, each."""
    generate(few)
    costs = []
    for _ in range(rounds):
        times = []
        for count in (few, many):
            start = time.perf_counter()
            generate(count)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        costs.append((times[1] - times[0]) / (many - few))
    return median(costs)


def measure(context: int, width: int, layers: int, device: str, tokens: int, rounds: int) -> list[dict]:
    """A row for each way to generate."""
    prompt = torch.randint(VOCABULARY, (1, context), device=device)
    gpt2, own = hyena_gpt2(context, width, layers).to(device), causal_lm(context, width, layers).to(device)
    settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}

    def cached(count: int) -> object:
        return gpt2.generate(prompt, max_new_tokens=count, min_new_tokens=count, **settings)

    def rerun(count: int) -> object:
        return gpt2.generate(prompt, max_new_tokens=count, min_new_tokens=count, use_cache=False, **settings)

    def ours(count: int) -> object:
        return own.generate(prompt, count, temperature=0.0)

    costs = {
        "cached": seconds_a_token(cached, 1, tokens, rounds),
        "own generate": seconds_a_token(ours, 1, tokens, rounds),
        "rerun": seconds_a_token(rerun, 1, 4, 1 if rounds == 1 else 2),
    }
    rows = []
    for way, cost in costs.items():
        ratio = cost / costs["cached"] if way == "rerun" else costs["cached"] / cost
        kind, bar = BARS.get(way, (None, None))
        ok = None if bar is None else ratio >= bar if kind == "at least" else ratio <= bar
        against = {"rerun": "rerun / cached", "own generate": "cached / own"}.get(way)
        rows.append({"way": way, "ms a token": cost * 1e3, "ratio": ratio, "of": against, "bar": bar, "ok": ok})
    return rows


def draw(record: dict) -> None:
    """Milliseconds a token, as bars on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = record["rows"]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.bar([row["way"] for row in rows], [row["ms a token"] for row in rows], color=["C0", "C2", "C3"])
    for i, row in enumerate(rows):
        axes.text(i, row["ms a token"], f"{row['ms a token']:.3g}", ha="center", va="bottom")
    axes.set(yscale="log", ylabel="ms a token", title=f"GPT-2 with Hyena, {record['context']} positions before")
    figure.savefig(RESULTS / "transformers-decoding.png", dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints a table, writes the record; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192, help="positions of the prompt")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=65, help="tokens of the longer call")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    import transformers

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = {"context": options.context, "width": options.width, "layers": options.layers}
    with torch.inference_mode():
        rows = measure(**sizes, device=options.device, tokens=options.tokens, rounds=options.rounds)
    print(table(rows))
    if options.context == parser.get_default("context"):
        record = {"machine": machine(options.device), "transformers": transformers.__version__, **sizes, "rows": rows}
        write("transformers-decoding", record)
        draw(record)
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
