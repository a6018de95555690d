"""StripedHyena's speed and memory: a forward pass, decoding steps, chunked prefill; beside other code, if there is any.

    python benchmarks/striped.py [--width 256] [--length 8192] [--threads 2]
    python benchmarks/striped.py --beside FILE          # ratios to another implementation, in the same run
    python benchmarks/striped.py --prefill 1048576      # memory of a long prefill, for two sizes of chunk
    python benchmarks/striped.py --dry-run              # toy sizes; nothing is written

Models of both generations with a block of each kind (IIR, IIR, attention; SE, MR, LI, attention), random weights in the
authors' layout, loaded by ``hyena.checkpoints.load_striped_hyena``. ``FILE`` is a Python file with ``build(config,
state)``, given the authors' settings and weights, that returns ``forward``, ``start`` and ``mixing``, or None if it has
no such model: ``forward(ids)`` returns logits ``(1, L, V)``, ``start(ids)`` reads a prompt and returns a function from
the next token ``(1, 1)`` to its logits, and ``mixing`` has for each Hyena layer a function of the projections ``z``
``(1, L, 3 D)``, with its own order of rows, to what goes into the output projection; with an attribute ``step``, the
same for ``(1, 1, 3 D)`` behind the prompt that ``start`` read. Logits are compared, and the deviation is in the table.
Times are medians of calls that took turns. Writes results/striped-cpu.json.

A second table has what happens between the projections: short convolution, gates and long convolution, of a whole row
and of a decoding step. So much is each layer's own; projections, MLPs and attention cost the same everywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, peak_bytes, table, write
from torch import Tensor

from hyena.checkpoints import load_striped_hyena
from hyena.checkpoints.striped.config import read_settings
from hyena.checkpoints.striped.parts import frequencies_of, parts
from hyena.models import StripedHyena
from hyena.models.decoder import ModelState

Other = tuple[Callable, Callable, dict[int, Callable]]
Build = Callable[[dict[str, Any], dict[str, Tensor]], Other | None]


def settings(generation: int, width: int, length: int) -> dict[str, Any]:
    """The authors' settings of a small model with a block of each kind."""
    both = {
        **{"vocab_size": 512, "hidden_size": width, "num_filters": width, "num_attention_heads": max(1, width // 128)},
        **{"short_filter_length": 3, "inner_size_multiple_of": 16, "mlp_activation": "gelu", "eps": 1e-6},
        **{"tie_embeddings": True, "proj_groups": 1, "hyena_filter_groups": 1, "final_norm": True},
        **{"mha_out_proj_bias": True, "max_seqlen": length, "rotary_emb_base": 10000, "use_flash_rmsnorm": False},
        **{"inner_mlp_size": -(-width * 8 // 48) * 16, "model_parallel_size": 1, "column_split": True},
    }
    if generation == 1:
        first = {"num_layers": 3, "attn_layer_idxs": [2], "hyena_layer_idxs": [0, 1], "short_filter_bias": True}
        return {**both, **first, "state_size": 8, "qkv_proj_bias": True, "column_split_hyena": True}
    groups = max(1, width // 16)
    return {
        **both,
        **{"num_layers": 4, "attn_layer_idxs": [3], "hcs_layer_idxs": [0], "hcm_layer_idxs": [1]},
        **{"hcl_layer_idxs": [2], "hcs_filter_length": 7, "hcm_filter_length": 128, "short_filter_bias": False},
        **{"hcs_filter_groups": groups, "hcm_filter_groups": groups, "hcl_filter_groups": width, "state_size": 16},
        **{"qkv_proj_bias": False, "hyena_out_proj_bias": True, "hyena_flip_x1x2": False, "interleave": True},
        **{"column_split_hyena": False, "evo2_style_activations": True, "use_fp8_input_projections": False},
    }


def weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights by the authors' names."""
    c, layout = read_settings(config)
    state: dict[str, Tensor] = {}
    for part in parts(c, layout, {i: Counter() for i in range(c.num_layers)}):
        for name, shape in part.theirs.items():
            t = torch.randn(shape) * shape[-1] ** -0.5
            if name.endswith("scale"):
                t = torch.ones(shape)
            elif name.endswith("log_poles"):
                t = -torch.exp(torch.empty(shape).uniform_(-8, 0))
            elif name.endswith("poles"):
                modulus, angle = 1 - torch.exp(torch.empty(shape[:3]).uniform_(-8, -1)), 3 * torch.rand(shape[:3])
                t = torch.view_as_real(torch.polar(modulus, angle))
            elif name.endswith(("residues", ".h", ".D", "bias")):
                t = 0.2 * torch.randn(shape)
            state[name] = t
    size = c.d_model // c.num_heads
    for i, kind in enumerate(c.layers):
        if kind == "attention":
            state[frequencies_of(i)] = 10000.0 ** (-torch.arange(0, size, 2) / size)
    return state


def read(model: StripedHyena, ids: Tensor, room: int) -> ModelState:
    """The state behind a prompt."""
    state = model.init_state(1, room)
    model.prefill(ids, state, last=True)
    return state


def measure(
    generation: int, width: int, length: int, steps: int, repeats: int, beside: Build | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row of a forward pass and a decoding step at the end of the row, and a row for each Hyena layer's mixing."""
    config = settings(generation, width, length)
    state = weights(config)
    model = load_striped_hyena(state, config)
    built = None if beside is None else beside(config, state)
    ids = torch.randint(512, (1, length))
    forwards: dict[str, Callable[[], Any]] = {"ours": lambda: model(ids)}
    prompt, ahead = ids[:, : length - steps * (repeats + 1)], ids[:, -1:]
    ours = read(model, prompt, length)

    def step(token: Tensor) -> Tensor:
        return model.prefill(token, ours)[0]

    stepping: dict[str, Callable[[], Any]] = {"ours": lambda: [step(ahead) for _ in range(steps)]}
    row: dict[str, Any] = {"generation": generation, "D": width, "L": length}
    if built is not None:
        forward, start, _ = built
        other = start(prompt)
        forwards["other"] = lambda: forward(ids)
        stepping["other"] = lambda: [other(ahead) for _ in range(steps)]
        mine, theirs = model(ids), forward(ids)
        row["deviation"] = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    for name, calls, count in (("forward", forwards, 1), ("step", stepping, steps)):
        times = interleaved(calls, repeats=repeats)
        row[f"{name} ms"] = times["ours"] / count * 1e3
        if beside is not None:
            times.setdefault("other", float("nan"))
            row[f"{name} other ms"] = times["other"] / count * 1e3
            row[f"{name} other / ours"] = times["other"] / times["ours"]
    size = model.state_size(1, length)
    row["state KB"], row["shared KB"] = size.rows / 1e3, size.shared / 1e3
    return row, mixing_rows(model, ours, length, repeats, {} if built is None else built[2])


def mixing_rows(
    model: StripedHyena, state: ModelState, length: int, repeats: int, others: dict[int, Callable]
) -> list[dict[str, Any]]:
    """A row for each Hyena layer: what happens between its projections, and in a step behind what the state read."""
    rows, z = [], torch.randn(1, length, 3 * model.config.d_model)
    for i, (kind, block) in enumerate(zip(model.config.layers, model.blocks, strict=True)):
        if kind == "attention":
            continue
        mixer = block.mixer

        def ours(mixer: Any = mixer) -> Tensor:
            return mixer._mix_at_once(z, length, None, None)

        calls: dict[str, Callable[[], Any]] = {"ours": ours}
        if i in others:
            calls["other"] = lambda i=i: others[i](z)
        times = interleaved(calls, repeats=repeats)
        row = {"layer": kind, "D": model.config.d_model, "L": length, "mixing ms": times["ours"] * 1e3}
        if i in others:
            row |= {"other ms": times["other"] * 1e3, "other / ours": times["other"] / times["ours"]}
        one, at = z[:, :1].clone(), state.layers[i]
        steps: dict[str, Callable[[], Any]] = {
            "ours": partial(_repeat, partial(mixer._continue_between, one, None, at))
        }
        if hasattr(others.get(i), "step"):
            steps["other"] = partial(_repeat, partial(others[i].step, one))
        times = interleaved(steps, repeats=5 * repeats)
        row["step us"] = times["ours"] / _STEPS * 1e6
        if "other" in times:
            row |= {"step other us": times["other"] / _STEPS * 1e6, "step other / ours": times["other"] / times["ours"]}
        rows.append(row)
    return rows


# Steps that are timed together: one is shorter than the clock's noise.
_STEPS = 50


def _repeat(step: Callable[[], Any]) -> None:
    for _ in range(_STEPS):
        step()


def long_prefill(length: int, width: int, chunks: list[int]) -> list[dict[str, Any]]:
    """A row for each size of chunk: two blocks, of 7 taps and of 16 modes."""
    config = settings(2, width, length)
    config |= {"num_layers": 2, "attn_layer_idxs": [], "hcm_layer_idxs": [], "hcl_layer_idxs": [1]}
    model, ids, rows = load_striped_hyena(weights(config), config), torch.randint(512, (1, length)), []
    for chunk in chunks:
        model.prefill(ids[:, :chunk], model.init_state(1, length), chunk=chunk)
        state = model.init_state(1, length)
        begin = time.perf_counter()
        peak = peak_bytes(lambda chunk=chunk, state=state: model.prefill(ids, state, chunk=chunk, last=True))
        seconds, size = time.perf_counter() - begin, state.size()
        rows.append(
            {
                **{"D": width, "L": length, "chunk": chunk, "peak MB": None if peak is None else peak / 1e6},
                **{"state KB": size.rows / 1e3, "shared KB": size.shared / 1e3, "s": seconds},
            }
        )
    return rows


def load_build(path: str) -> Build:
    """``build`` of a Python file."""
    spec = importlib.util.spec_from_file_location("beside", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", metavar="FILE")
    parser.add_argument("--prefill", type=int, metavar="LENGTH", help="measure the memory of a prefill of this length")
    parser.add_argument("--chunks", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    width, length, steps, repeats = args.width, args.length, 16, args.repeats
    if args.dry_run:
        width, length, steps, repeats = 32, 256, 2, 1
    mixing: list[dict[str, Any]] = []
    with torch.inference_mode():
        if args.prefill is not None:
            rows = long_prefill(args.prefill, width, args.chunks)
        else:
            beside = None if args.beside is None else load_build(args.beside)
            measured = [measure(generation, width, length, steps, repeats, beside) for generation in (1, 2)]
            rows, mixing = [row for row, _ in measured], [row for _, layers in measured for row in layers]
    for part in (rows, mixing):
        if part:
            print(table([{**dict.fromkeys(max(part, key=len)), **row} for row in part]), flush=True)
    if not args.dry_run:
        name = "striped-prefill-cpu" if args.prefill is not None else "striped-cpu"
        record = {
            **machine("cpu"),
            "dtype": "float32",
            "beside": args.beside and Path(args.beside).name,
            "rows": rows,
            "mixing": mixing,
        }
        print(write(name, record))


if __name__ == "__main__":
    main()
