"""StripedHyena as a model of the library: config, initialisation, training, steps, chunks, generation, extension."""

from __future__ import annotations

import json

import pytest
import torch

from hyena import param_groups
from hyena.models import StripedHyena, StripedHyenaConfig, next_token_loss

SIZES = {"vocab_size": 11, "l_max": 64, "d_model": 16, "num_heads": 2}
LAYERS = ("SE", "MR", "LI", "IIR", "attention")


def config(**changes: object) -> StripedHyenaConfig:
    return StripedHyenaConfig(**{**SIZES, "layers": LAYERS, "mr_taps": 20, "modes": 3, "groups": 4, **changes})


@pytest.fixture
def model() -> StripedHyena:
    return StripedHyena(config(), dtype=torch.float64).eval()


def test_config_to_and_from_json() -> None:
    c = config(rotary_frequencies=[1.0, 0.1, 0.01, 0.001])
    assert StripedHyenaConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    assert c.num_layers == 5
    assert config().inner_width == 64
    assert config(d_model=48, inner_multiple=16).inner_width == 128
    assert config(d_inner=30).inner_width == 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": ("SE", "XL")}, "layers holds XL; a layer is one of SE, MR"),
        ({"layers": ()}, "at least one block"),
        ({"activation": "relu"}, "'silu' or 'gelu', got 'relu'"),
        ({"mr_taps": 128}, "128 taps of MR layers reach further than rows of l_max=64"),
        ({"num_heads": 3}, "d_model=16 is not a multiple of num_heads=3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ({"num_heads": 16}, "heads of 1 channels have no pairs"),
        ({"rotary_base": -1.0}, "rotary_base must be a positive number, got -1.0"),
        ({"rotary_frequencies": (1.0,)}, "must be 4 numbers, half of a head's 8 channels, got 1"),
        ({"groups": 5}, "d_model=16 is not a multiple of groups=5"),
        ({"modes": 0}, "modes must be at least 1"),
        ({"tie_embeddings": "yes"}, "tie_embeddings must be True or False"),
    ],
)
def test_settings_that_do_not_fit(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StripedHyena(config(**changes))
    with pytest.raises(ValueError, match="unknown fields"):
        StripedHyenaConfig.from_dict({**config().to_dict(), "inner_mlp_size": 3})


@torch.no_grad()
def test_steps_chunks_and_the_whole_row_agree(model: StripedHyena) -> None:
    ids = torch.randint(11, (2, 64))
    want, state = model(ids), model.init_state(2)
    steps = torch.stack([model.step(ids[:, t], state)[0] for t in range(64)], dim=1)
    assert (steps - want).abs().max() < 1e-10
    for chunk in (1, 7, 63, 64, 100):
        state = model.init_state(2)
        got, state = model.prefill(ids, state, chunk=chunk)
        assert (got - want).abs().max() < 1e-10
        assert state.position == 64
        last, _ = model.prefill(ids, model.init_state(2), last=True, chunk=chunk)
        assert last.shape == (2, 1, 11)
        assert (last[:, 0] - want[:, -1]).abs().max() < 1e-10


def test_chunks_that_do_not_fit_change_nothing(model: StripedHyena) -> None:
    state = model.init_state(1, 30)
    with pytest.raises(ValueError, match="0 positions and 31 more do not fit a state made for 30"):
        model.prefill(torch.zeros(1, 31, dtype=torch.long), state, chunk=10)
    assert state.position == 0
    assert not any(t.any() for t in state.rows().values())
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        model.prefill(torch.zeros(1, 3, dtype=torch.long), state, chunk=0)


def test_no_output_sees_a_later_token(model: StripedHyena) -> None:
    ids = torch.randint(11, (1, 40))
    other = ids.clone()
    other[:, 25:] = (other[:, 25:] + 1) % 11
    apart = (model(ids) - model(other)).abs().amax(dim=(0, 2))
    assert apart[:25].max() < 1e-10
    assert apart[25:].min() > 1e-6


def test_every_weight_is_initialised_and_trained() -> None:
    model = StripedHyena(config(tie_embeddings=False, in_bias=True, short_bias=True), device="meta")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            t.fill_(torch.nan)
    model.reset_parameters()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        assert t.isfinite().all(), name
    ids = torch.randint(11, (2, 30))
    loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    assert 2.2 < loss.item() < 2.6
    loss.backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) or name == "blocks.0.mixer.conv.bias", name
    groups = param_groups(model, 1e-3)
    assert {id(p) for g in groups for p in g["params"]} >= {id(p) for p in model.parameters() if p.requires_grad}
    checkpointed = StripedHyena(
        config(gradient_checkpointing=True, tie_embeddings=False, in_bias=True, short_bias=True)
    )
    checkpointed.load_state_dict(model.state_dict())
    assert torch.allclose(next_token_loss(checkpointed(ids[:, :-1]), ids[:, 1:]), loss)


@torch.no_grad()
def test_longer_rows(model: StripedHyena) -> None:
    ids = torch.randint(11, (1, 100))
    with pytest.raises(ValueError, match=r"100 positions is longer than .*l_max=64"):
        model(ids)
    short = model(ids[:, :64])
    model.extend(128)
    long = model(ids)
    assert (long[:, :64] - short).abs().max() < 1e-10
    assert (model.prefill(ids, model.init_state(1), chunk=33)[0] - long).abs().max() < 1e-10
    model.blocks[4].mixer.extend(256, "stretch")
    assert model.blocks[4].mixer.rotary.scaling == 2.0


def test_generates_text(model: StripedHyena) -> None:
    rows = model.generate([[1, 2, 3], [4]], 5, temperature=0)
    assert [len(row) for row in rows] == [8, 6]
    alone = model.generate([[4]], 5, temperature=0)[0]
    assert torch.equal(rows[1], alone)


@torch.no_grad()
def test_states_are_saved_and_their_size_is_known(model: StripedHyena) -> None:
    ids = torch.randint(11, (2, 40))
    state = model.init_state(2, 40)
    assert tuple(model.state_size(2, 40)) == tuple(state.size())
    keep = torch.arange(40) >= torch.tensor([[0], [9]])
    model.prefill(ids[:, :25], state, keep[:, :25])
    again = model.init_state(2, 40)
    again.load_state_dict(state.state_dict())
    got = model.prefill(ids[:, 25:], again, chunk=4)[0]
    assert (got - model(ids, keep)[:, 25:]).abs().max() < 1e-10
