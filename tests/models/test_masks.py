"""One contract for the masks of all models: bool, or a tokenizer's 0 and 1, in forward, loss, prefill and generate."""

from __future__ import annotations

import pytest
import torch

from helpers.models import MODELS, V, build


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integer_masks_are_bool_masks(name: str, dtype: torch.dtype) -> None:
    model, tokens = build(name), torch.randint(V, (2, 10))
    mask = torch.arange(10) >= torch.tensor([[0], [4]])
    whole = mask.to(dtype)
    assert torch.equal(model(tokens, whole)[mask], model(tokens, mask)[mask])
    assert torch.equal(model.hidden_states(tokens, whole)[mask], model.hidden_states(tokens, mask)[mask])
    got, want = (model.prefill(tokens, model.init_state(2), m)[0] for m in (whole, mask))
    assert torch.equal(got, want)
    for row, same in zip(*(model.generate(tokens, 5, mask=m, temperature=0) for m in (whole, mask)), strict=True):
        assert torch.equal(row, same)
    if name != "dna":
        assert torch.equal(model.loss(tokens, tokens, whole), model.loss(tokens, tokens, mask))


@pytest.mark.parametrize("name", MODELS)
def test_other_masks_raise_everywhere(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 5))
    doors = [
        lambda m: model(tokens, m),
        lambda m: model.hidden_states(tokens, m),
        lambda m: model.prefill(tokens, model.init_state(2), m),
        lambda m: model.generate(tokens, 1, mask=m),
    ]
    if name != "dna":
        doors.append(lambda m: model.loss(tokens, tokens, m))
    for door in doors:
        with pytest.raises(ValueError, match=r"bool or integer, of shape \(2, 5\).*got torch.float32"):
            door(torch.ones(2, 5))
        with pytest.raises(ValueError, match=r"bool or integer, of shape \(2, 5\).*\(2, 6\)"):
            door(torch.ones(2, 6, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"1 where a token is kept and 0 for padding; got 2.*cu_seqlens"):
            door(torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]]))


@pytest.mark.parametrize("name", MODELS)
def test_integer_masks_compile(name: str) -> None:
    model, tokens = build(name), torch.randint(V, (2, 10))
    mask = (torch.arange(10) >= torch.tensor([[0], [4]])).long()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kept = mask.bool()
    torch.testing.assert_close(compiled(tokens, mask)[kept], model(tokens, mask)[kept])
