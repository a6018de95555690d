"""Steps as modules of plain tensors: what the model generates, in torch, in programs and in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hyena import HyenaOperator, distill
from hyena.export import decompose, step_model, to_onnx
from hyena.mixers import GSS, H3, Attention
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig

D, T = 8, 48


def language_model(**options: Any) -> CausalLM:
    config = {"vocab_size": 11, "l_max": T, "d_model": D, "num_layers": 2, **options}
    return CausalLM(CausalLMConfig(**config)).eval()


def greedy(step: Any, prompt: torch.Tensor, new: int) -> torch.Tensor:
    """The prompt, token by token, and what ``step(tokens, *state)`` makes likeliest."""
    state, tokens = None, [prompt[:, 0]]
    for i in range(1, prompt.size(1) + new):
        logits, *state = step(tokens[-1], state)
        tokens.append(prompt[:, i] if i < prompt.size(1) else logits.argmax(-1))
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("kind", ["exact", "distilled", "order-3", "dna", "h3", "gss"])
def test_tokens_of_generate(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "order-3": {"mixer_options": {"order": 3}},
        "h3": {"mixer": H3},
        "gss": {"mixer": GSS},
    }.get(kind, {})
    m: Any = language_model(**options)
    if kind == "dna":
        m = HyenaDNA(HyenaDNAConfig(l_max=T, d_model=D, head="lm")).eval()
    if kind == "distilled":
        m = distill(m, modes=4, progress=False)
    step = step_model(m, batch=2)
    assert not any(t.is_complex() for t in step.initial_state())
    prompt = torch.randint(5, (3, 6))
    begin = step.initial_state(3)
    with torch.no_grad():
        got = greedy(lambda tokens, state: step(tokens, *(state or begin)), prompt, 20)
    assert got.tolist() == torch.stack(m.generate(prompt, 20, temperature=0)).tolist()


@torch.no_grad()
def test_outputs_of_the_operator() -> None:
    """At every position to the last, after a prompt read at once; one more is an error."""
    m, u = HyenaOperator(D, T).double().eval(), torch.randn(2, T, D).double()
    step, want = step_model(m), m(u)
    y, *state = step.prefill(u[:, :20])
    torch.testing.assert_close(y, want[:, 19])
    for t in range(20, T):
        before = [s.clone() for s in state]
        y, *after = step(u[:, t], *state)
        torch.testing.assert_close(y, want[:, t])
        assert all(torch.equal(a, b) for a, b in zip(before, state))  # what goes in is left alone
        state = after
    with pytest.raises(IndexError):
        step(u[:, 0], *state)


def test_the_program_is_plain() -> None:
    step = step_model(distill(language_model(), modes=4, progress=False), batch=2)
    args = (torch.zeros(2, dtype=torch.int64), *step.initial_state())
    plain = decompose(torch.export.export(step, args))
    targets = {str(node.target) for node in plain.graph.nodes if node.op == "call_function"}
    assert not any(name in target for target in targets for name in ("hyena", "complex"))
    for got, want in zip(plain.module()(*args), step(*args), strict=True):
        torch.testing.assert_close(got, want)


def test_tokens_in_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="hyena[onnx] is not installed")
    ort = pytest.importorskip("onnxruntime", reason="hyena[onnx] is not installed")
    torch.manual_seed(0)
    m = language_model(num_layers=1)
    for model in (m, distill(m, modes=4, progress=False)):
        step = step_model(model)
        file = to_onnx(step, tmp_path / "step.onnx")
        assert list(file.inputs) == ["tokens", *step.state_names]
        assert list(file.outputs) == ["logits", *(f"next_{name}" for name in step.state_names)]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        run = ort.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])
        begin = [t.numpy() for t in step.initial_state(2)]

        def advance(tokens: torch.Tensor, state: Any, run: Any = run, begin: Any = begin) -> list:
            names = (given.name for given in run.get_inputs())
            logits, *state = run.run(None, dict(zip(names, [tokens.numpy(), *(state or begin)])))
            return [torch.from_numpy(logits), *state]

        prompt = torch.randint(5, (2, 6))
        want = torch.stack(model.generate(prompt, 30, temperature=0))
        assert greedy(advance, prompt, 30).tolist() == want.tolist()
        with pytest.raises(Exception, match="more_steps_than_max_length"):
            greedy(advance, prompt, T)


def test_what_cannot_be_stepped_is_named() -> None:
    with pytest.raises(ValueError, match=r"blocks.0.mixer \(Attention\) is another one at position 1 than at 0"):
        step_model(language_model(mixer=Attention, mixer_options={"num_heads": 2}))
    with pytest.raises(ValueError, match=r"this mixer \(HyenaOperator\) cannot be stepped: causal=False"):
        step_model(HyenaOperator(D, T, causal=False))
    with pytest.raises(TypeError, match=r"a hyena\.models\.Decoder or a hyena\.mixers\.Mixer, got Linear"):
        step_model(torch.nn.Linear(2, 2))
    step = step_model(HyenaOperator(D, T))
    with pytest.raises(ValueError, match=r"the state has 3 tensors \(state.position, state.short, .*got 2"):
        step(torch.randn(1, D), *step.initial_state()[:2])
