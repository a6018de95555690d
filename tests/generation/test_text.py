"""Language models step by step: logits, sampling, ragged prompts, and the same greedy text however it is made."""

from __future__ import annotations

import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.models import L_MAX, MODELS, V, build
from hyena import HyenaOperator, distill
from hyena.conv import distillation_errors
from hyena.generation import generate_by_rerun, sample, stream
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"


def prompt(length: int) -> Tensor:
    return torch.randint(V, (length,))


def greedy_by_steps(model: CausalLM, tokens: Tensor, new: int, sizes: list[int]) -> Tensor:
    state = model.init_state(tokens.size(0))
    for part in tokens.split(sizes, dim=1):
        logits, state = model.prefill(part, state)
    logits = logits[:, -1]
    for _ in range(new - 1):
        tokens = torch.cat([tokens, logits[:, :V].argmax(-1)[:, None]], dim=1)
        logits, state = model.step(tokens[:, -1], state)
    return torch.cat([tokens, logits[:, :V].argmax(-1)[:, None]], dim=1)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20)
@given(data=st.data())
def test_logits_are_those_of_forward(name: str, data: st.DataObject) -> None:
    model = build(name)
    sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4).filter(lambda s: sum(s) <= L_MAX))
    tokens = torch.randint(V, (3, sum(sizes)))
    mask = torch.rand(3, sum(sizes)) > 0.3 if data.draw(st.booleans()) else None
    state, got = model.init_state(3, data.draw(st.integers(sum(sizes), L_MAX))), []
    for i, part in enumerate(tokens.split(sizes, dim=1)):
        some = None if mask is None else mask.split(sizes, dim=1)[i]
        if part.size(1) == 1 and some is None:
            logits, state = model.step(part[:, 0], state)
            logits = logits[:, None]
        else:
            logits, state = model.prefill(part, state, some)
        got.append(logits)
        state = state.clone()
    want = model(tokens, mask)
    difference = (torch.cat(got, dim=1) - want).abs()
    kept = difference if mask is None else difference[mask]
    assert kept.numel() == 0 or kept.max() < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_the_same_greedy_text_by_rerun_steps_and_chunks(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 9))
    new = L_MAX - 9
    want = generate_by_rerun(model, tokens, new, window=L_MAX, temperature=0, vocab_size=V)
    assert torch.equal(greedy_by_steps(model, tokens, new, [1] * 9), want)
    assert torch.equal(greedy_by_steps(model, tokens, new, [2, 7]), want)
    assert torch.equal(torch.stack(model.generate(tokens, new, temperature=0)), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("operator", [{}, {"order": 3, "num_heads": 2}])
def test_ragged_prompts_give_what_each_gives_alone(name: str, operator: dict) -> None:
    model = build(name, **({} if name == "attention" else operator))
    prompts = [prompt(n) for n in (7, 1, 20)]
    want = [model.generate(p[None], 12, temperature=0)[0] for p in prompts]
    for got, alone in zip(model.generate(prompts, 12, temperature=0), want, strict=True):
        assert torch.equal(got, alone)
    longest = 20
    for side in ("left", "right"):
        tokens, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.bool)
        for i, p in enumerate(prompts):
            part = slice(longest - len(p), None) if side == "left" else slice(0, len(p))
            tokens[i, part], mask[i, part] = p, True
        for got, alone in zip(model.generate(tokens, 12, mask=mask, temperature=0), want, strict=True):
            assert torch.equal(got, alone)


def test_rows_end_at_eos_or_a_stop_sequence() -> None:
    model, start = build("hyena"), torch.randint(V, (3, 4))
    full = [row.tolist() for row in model.generate(start, 30, temperature=0)]
    eos = full[0][8]
    for row, whole in zip(model.generate(start, 30, temperature=0, eos=eos), full, strict=True):
        cut = whole.index(eos, 4) + 1 if eos in whole[4:] else len(whole)
        assert row.tolist() == whole[:cut]
    ending = full[1][10:12]
    got = model.generate(start[1:2], 30, temperature=0, stop=[ending])[0].tolist()
    first = next(i for i in range(4, 33) if full[1][i : i + 2] == ending)
    assert got == full[1][: first + 2]
    # A sequence that ends across the border of the prompt does not count.
    assert len(model.generate(start[:1], 1, temperature=0, stop=[[int(start[0, -1]), full[0][4]]])[0]) == 5


def test_streams_callbacks_and_seeds() -> None:
    model, start = build("hyena"), torch.randint(V, (2, 3))
    seen = []
    text = model.generate(start, 20, seed=3, callback=seen.append)
    pieces = list(stream(model, start, 20, seed=3))
    assert torch.equal(torch.stack(pieces, dim=1), torch.stack(seen, dim=1))
    assert torch.equal(torch.stack(text)[:, 3:], torch.stack(pieces, dim=1))
    assert not torch.equal(torch.stack(model.generate(start, 20, seed=4)), torch.stack(text))
    assert torch.equal(torch.stack(model.generate(start, 0)), start)


def test_streaming_leaves_mode_and_inference_mode_alone() -> None:
    model = build("hyena").train()
    for _ in stream(model, torch.randint(V, (1, 3)), 4):
        assert model.training
        assert not torch.is_inference_mode_enabled()
    dropping = CausalLM(CausalLMConfig(vocab_size=V, l_max=L_MAX, d_model=16, num_layers=1, dropout=0.1))
    with pytest.raises(ValueError, match="eval"):
        dropping.prefill(torch.randint(V, (1, 3)), dropping.init_state(1))


@pytest.mark.parametrize("window", [1, 20, L_MAX - 1])
def test_a_window_goes_on_past_l_max(window: int) -> None:
    model, start = build("hyena"), torch.randint(V, (2, 10))
    text = start
    for _ in range(120):  # by definition: all of the text up to l_max, then again from the last `window` tokens
        length = text.size(1)
        if length <= L_MAX:
            first = 0
        elif length - first > L_MAX:
            first = length - window
        text = torch.cat([text, model(text[:, first:])[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(torch.stack(model.generate(start, 120, temperature=0, window=window)), text)
    long = torch.randint(V, (1, L_MAX + 30))
    want = generate_by_rerun(model, long, 1, window=window, temperature=0)
    assert torch.equal(model.generate(long, 1, temperature=0, window=window)[0], want[0])


def test_size_of_a_models_state() -> None:
    for name in MODELS:
        model = build(name)
        state = model.init_state(3, 40)
        assert model.state_size(3, 40).rows == sum(t.numel() * t.element_size() for t in state.rows().values())
        assert model.state_size(3, 40) == state.size()


def test_beams_and_saving() -> None:
    for name in MODELS:
        model, tokens = build(name), torch.randint(V, (2, 12))
        _, state = model.prefill(tokens, model.init_state(2))
        saved = {k: t.clone() for k, t in state.state_dict().items()}
        rows = torch.tensor([1, 1, 0])
        next_tokens = torch.randint(V, (3,))
        logits, _ = model.step(next_tokens, state.reorder(rows))
        want = model(torch.cat([tokens[rows], next_tokens[:, None]], dim=1))[:, -1]
        assert (logits - want).abs().max() < 1e-10
        model.step(next_tokens[:2], state)
        state.load_state_dict(saved)
        assert state.position == 12
        logits, _ = model.step(next_tokens[:2], state)
        want = model(torch.cat([tokens, next_tokens[:2, None]], dim=1))[:, -1]
        assert (logits - want).abs().max() < 1e-10


def test_tokens_beyond_the_vocabulary_are_never_drawn() -> None:
    model, start = build("dna"), torch.randint(V, (2, 5))
    # Hidden states of a LayerNorm that is shifted towards the padding tokens' rows, which make those win.
    with torch.no_grad():
        model.norm.bias.copy_(10 * model.embedding.weight[V:].sum(0))
    assert (model(start)[..., :V].amax(-1) < model(start).amax(-1)).all()
    assert all(int(row.max()) < V for row in model.generate(start, 30, temperature=0))
    assert all(int(row.max()) < V for row in model.generate(start, 30, seed=1))
    assert int(generate_by_rerun(model, start, 3, window=L_MAX, temperature=0).max()) >= V


def test_hyenadna_without_a_head_and_with_a_classifiers() -> None:
    c = {"l_max": L_MAX, "d_model": 16, "num_layers": 2}
    x, mask = torch.randint(7, 12, (2, 20)), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :6] = 0
    bare = HyenaDNA(HyenaDNAConfig(**c), dtype=torch.float64).eval()
    got, state = bare.prefill(x[:, :19], bare.init_state(2), mask[:, :19])
    last, state = bare.step(x[:, 19], state)
    want = bare(x, mask)
    kept = mask[:, :19].bool()
    assert (got - want[:, :19])[kept].abs().max() < 1e-10
    assert (last - want[:, 19]).abs().max() < 1e-10
    with pytest.raises(ValueError, match="head=None"):
        bare.generate(x, 1)
    classes = HyenaDNA(HyenaDNAConfig(**c, head="classes")).eval()
    for attempt in (classes.init_state, lambda n: classes.generate(x[:n], 1), classes.state_size):
        with pytest.raises(ValueError, match="head='classes'"):
            attempt(1)


def test_hyenadna_in_bfloat16() -> None:
    model = HyenaDNA(HyenaDNAConfig(l_max=L_MAX, head="lm"), dtype=torch.bfloat16).eval()
    x = torch.randint(7, 12, (1, 40))
    got, state = model.prefill(x[:, :30], model.init_state(1))
    rest = []
    for t in range(30, 40):
        logits, state = model.step(x[:, t], state)
        rest.append(logits[:, None])
    got = torch.cat([got, *rest], dim=1)
    want = model(x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


def test_hyenadna_distilled() -> None:
    small = distill(build("dna"), modes=4)
    assert list(distillation_errors(small)) == ["blocks.0.mixer.conv", "blocks.1.mixer.conv"]
    x = torch.randint(V, (2, 30))
    logits, state = small.prefill(x[:, :29], small.init_state(2))
    last, _ = small.step(x[:, 29], state)
    assert (torch.cat([logits, last[:, None]], dim=1) - small(x)).abs().max() < 1e-9


def test_mixers_that_cannot_be_stepped() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor, **mixing: object) -> Tensor:
            return x

    mixers = [HyenaOperator(16, L_MAX), Nothing()]
    model = HyenaDNA(HyenaDNAConfig(l_max=L_MAX, d_model=16, head="lm"), mixers).eval()
    with pytest.raises(ValueError, match=r"blocks\.1\.mixer is a Nothing.*generate_by_rerun"):
        model.init_state(1)
    training = HyenaDNA(HyenaDNAConfig(l_max=L_MAX, d_model=16, head="lm"))
    with pytest.raises(ValueError, match=r"dropout=0.1.*eval"):
        training.prefill(torch.zeros(1, 3, dtype=torch.long), training.init_state(1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_a_temperature_near_zero_is_zero(temperature: float, limits: dict[str, Any]) -> None:
    logits = torch.randn(5, V) * torch.tensor([1e-3, 1.0, 30.0, 1e4, 1e30])[:, None]
    logits[:, 0] = -torch.inf
    assert torch.equal(sample(logits, temperature=temperature, **limits), logits.argmax(-1))


def test_arguments_of_another_kind() -> None:
    """The error repeats what was given, and says what would work."""
    model, start = build("hyena"), torch.randint(V, (1, 4))
    for options, message in [
        ({"stop": [5]}, r"stop must hold sequences of tokens, as \[\[5, 6\], \[7\]\], got \[5\]; one token .* is eos="),
        ({"stop": 5}, "stop must hold sequences of tokens, .* got 5;"),
        ({"stop": ["ab"]}, r"stop must hold sequences of tokens, .* got \['ab'\];"),
        ({"stop": [[1.5]]}, r"stop must hold sequences of tokens, .* got \[\[1.5\]\];"),
        ({"stop": [[3], []]}, r"needs at least one token, got \[\[3\], \[\]\]"),
        ({"eos": "a"}, "eos must be an integer, got 'a'"),
        ({"eos": [1]}, r"eos must be an integer, got \[1\]"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": None}, "temperature must not be negative, got None"),
        ({"temperature": math.nan}, "temperature must not be negative, got nan"),
        ({"temperature": math.inf}, "temperature must be finite, got inf"),
        ({"top_p": "most"}, "top_p must be a number, got 'most'"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(start, 1, **options)
    for prompts in ("abc", ["abc"], [1, 2, 3], [[[1]]], [None], [["a"]], 5, None, [[1, [2]]]):
        words = re.escape(f"prompts must be rows of tokens, as [[3, 1, 4], [1, 5]], got {prompts!r}: text goes through")
        with pytest.raises(ValueError, match=words):
            model.generate(prompts, 1)
    for name in ("max_new_tokens", "window", "vocab_size"):
        with pytest.raises(ValueError, match=f"{name} must be an integer, got 1.5"):
            generate_by_rerun(model, start, **{"max_new_tokens": 1, "window": 4, name: 1.5})
    assert model.generate(start, 3, stop=torch.tensor([[1, 2]]), eos=torch.tensor(3))


def test_wrong_arguments() -> None:
    model, start = build("hyena"), torch.randint(V, (1, 4))
    with pytest.raises(ValueError, match=f"4 tokens and 46 new .* l_max={L_MAX}"):
        model.generate(start, L_MAX - 2)
    assert len(model.generate(start, L_MAX - 3)[0]) == L_MAX + 1
    for options, message in [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"window": L_MAX}, "window"),
        ({"stop": [[]]}, "stop"),
        ({"mask": torch.ones(1, 4)}, "bool"),
        ({"mask": torch.zeros(1, 4, dtype=torch.bool)}, "at least one token"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.generate(start, 1, **options)
    for prompts, message in [([], "at least one"), ([[]], "at least one"), ([[V]], f"0 to {V - 1}")]:
        with pytest.raises(ValueError, match=message):
            model.generate(prompts, 1)
    with pytest.raises(TypeError):
        model.generate(start, 1, beams=3)
    state = model.init_state(1, 4)
    model.prefill(start, state)
    with pytest.raises(ValueError, match="4 positions and 1 more"):
        model.step(start[:, 0], state)


def test_top_p() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().repeat(4000, 1)
    drawn = sample(logits, top_p=0.7).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.0, 2 / 3, 0.0, 1 / 3]), atol=0.04, rtol=0.0)
    assert set(sample(logits, top_p=1e-6).tolist()) == {1}
    assert set(sample(logits, top_p=1.0).tolist()) == {0, 1, 2, 3}
    assert set(sample(logits, top_p=0.9, top_k=2).tolist()) == {1, 3}


@pytest.fixture
def command() -> Iterator[Callable[..., None]]:
    """``generate.py``'s main, called in this process."""
    spec = importlib.util.spec_from_file_location("generate", EXAMPLE / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield lambda *arguments: module.main([*map(str, arguments)])
    torch.set_num_threads(threads)


def test_the_main_jobs_checkpoint_on_the_command_line(
    tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = "\n abcdefghijk"
    model = CausalLM(CausalLMConfig(vocab_size=13, l_max=16, d_model=16, num_layers=1))
    path = tmp_path / "checkpoint.pt"
    torch.save({"config": model.config.to_dict(), "vocabulary": vocabulary, "model": model.state_dict()}, path)
    options = ["--checkpoint", path, "--length", 40]
    command(*options, "--prompt", "abc", "--temperature", 0)
    ids = torch.tensor([[vocabulary.index(c) for c in "abc"]])
    want = model.generate(ids, 40, temperature=0, window=8)[0]
    assert capsys.readouterr().out == "".join(vocabulary[i] for i in want) + "\n"
    command(*options, "--distilled", 4, "--seed", 1)
    # A prompt of a line break is not shown.
    assert len(capsys.readouterr().out) == 41


def test_the_command_lines_errors_have_an_exit_code_and_no_traceback(tmp_path: Path) -> None:
    model = CausalLM(CausalLMConfig(vocab_size=3, l_max=16, d_model=16, num_layers=1))
    path = tmp_path / "checkpoint.pt"
    torch.save({"config": model.config.to_dict(), "vocabulary": "abc", "model": model.state_dict()}, path)
    run = [sys.executable, "-W", "ignore", EXAMPLE / "generate.py", "--checkpoint", path, "--prompt", "xyz"]
    wrong = subprocess.run(run, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "'x', 'y', 'z'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prompts_read_in_chunks(chunk: int) -> None:
    model = build("hyena")
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    longest: list[int] = []
    model.blocks[0].register_forward_hook(lambda m, inputs, y: longest.append(y.size(1)))
    want = model.generate(prompts, 5, temperature=0)
    assert max(longest) == 7
    longest.clear()
    for row, same in zip(model.generate(prompts, 5, temperature=0, chunk=chunk), want, strict=True):
        assert torch.equal(row, same)
    assert max(longest) == min(chunk, 7)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        model.generate(prompts, 5, chunk=0)
