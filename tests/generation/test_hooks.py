"""Steps call the modules that forward calls: hooks, replaced forwards, and every submodule's own mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.models import L_MAX, MODELS, V, build
from hyena.generation import generate_by_rerun, stream
from hyena.models import Decoder


def called(model: Decoder, run: Callable[[], Any]) -> dict[str, int]:
    """How often the forward hooks of each submodule run."""
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    handles = [m.register_forward_hook(count(name)) for name, m in model.named_modules()]
    handles += [m.register_forward_pre_hook(count(name)) for name, m in model.named_modules()]
    run()
    for handle in handles:
        handle.remove()
    return counts


def without_filters(counts: dict[str, int]) -> dict[str, int]:
    """Without the long convolutions, whose taps a state holds, and the dropout between them, which does nothing."""
    skipped = (".conv", ".filter", ".mixer.dropout")
    return {name: n for name, n in counts.items() if not any(part in name for part in skipped)}


@pytest.mark.parametrize("name", MODELS)
def test_every_module_is_called_once_a_step(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 9))
    want = without_filters(called(model, lambda: model(tokens)))
    assert {"", "embedding", "blocks.1", "blocks.1.norm1", "blocks.0.mixer", "blocks.0.mixer.in_proj"} < want.keys()
    assert {"blocks.0.mixer.out_proj", "blocks.1.mlp.fc2", "norm", "head"} < want.keys()
    assert ("positions" in want) == (name == "attention")
    state = model.init_state(2)
    assert without_filters(called(model, lambda: model.prefill(tokens[:, :6], state))) == want
    assert without_filters(called(model, lambda: model.step(tokens[:, 6], state))) == want
    text = without_filters(called(model, lambda: model.generate(tokens, 5, temperature=0)))
    assert text == {part: 5 * n for part, n in want.items()}


@pytest.mark.parametrize(
    "part", ["", "blocks.0", "blocks.1.mixer", "blocks.0.norm1", "blocks.1.mlp", "norm", "embedding"]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_steered_model_steps_as_it_runs(name: str, part: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 20))
    plain = model(tokens)
    target, direction = model.get_submodule(part), torch.randn(model.head.out_features if part == "" else 16).double()
    target.register_forward_hook(lambda module, args, y: y + direction)
    want = model(tokens)
    assert (want - plain).abs().max() > 0.1
    state = model.init_state(2)
    got = [model.prefill(tokens[:, :7], state)[0], model.prefill(tokens[:, 7:12], state)[0]]
    got += [model.step(tokens[:, t], state)[0][:, None] for t in range(12, 20)]
    assert (torch.cat(got, dim=1) - want).abs().max() < 1e-10
    want = generate_by_rerun(model, tokens, 10, window=L_MAX, temperature=0, vocab_size=V)
    assert torch.equal(torch.stack(model.generate(tokens, 10, temperature=0)), want)


@pytest.mark.parametrize("part", ["blocks.0.mixer.in_proj", "blocks.0.mlp.fc1", "head", "blocks.1"])
@pytest.mark.parametrize("name", MODELS)
def test_a_replaced_forward_is_called(name: str, part: str) -> None:
    model, tokens = build(name), torch.randint(V, (1, 12))
    target = model.get_submodule(part)
    forward = target.forward
    target.forward = lambda *args, **keywords: 1.5 * forward(*args, **keywords)
    want = model(tokens)
    state = model.init_state(1)
    got = [model.prefill(tokens[:, :8], state)[0]]
    got += [model.step(tokens[:, t], state)[0][:, None] for t in range(8, 12)]
    assert (torch.cat(got, dim=1) - want).abs().max() < 1e-10


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: m.training for name, m in model.named_modules()}


@pytest.mark.parametrize("root", [True, False])
def test_every_submodule_keeps_its_mode(root: bool) -> None:
    model, tokens = build("hyena"), torch.randint(V, (1, 4))
    model.train(root)
    model.blocks[0].train(not root)
    model.blocks[0].mixer.in_proj.train(root)
    model.norm.train(not root)
    before = modes(model)
    inside: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: inside.append(any(modes(module).values())))
    for _ in stream(model, tokens, 3, temperature=0):
        assert modes(model) == before
    model.generate(tokens, 3)
    assert modes(model) == before
    generate_by_rerun(model, tokens, 3, window=4)
    assert modes(model) == before
    assert inside == [False] * 9

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("a hook that fails")

    model.blocks[1].register_forward_hook(fail)
    for run in (lambda: model.generate(tokens, 1), lambda: generate_by_rerun(model, tokens, 1, window=4)):
        with pytest.raises(RuntimeError, match="a hook that fails"):
            run()
        assert modes(model) == before


def test_a_model_in_eval_mode_is_left_alone() -> None:
    model = build("hyena")
    model.train = None  # would be called  # type: ignore[assignment]
    assert len(model.generate([[1, 2]], 3)[0]) == 5
