"""Vision transformers: attention, and Hyena along the patches or over their grid in its place."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyena
from hyena import HyenaOperator
from hyena.filters import HyenaFilterND
from hyena.mixers import Attention, HyenaPatches
from hyena.models import ViT, ViTConfig

SMALL = {"image_size": (16, 24), "patch_size": 4, "num_classes": 5, "d_model": 16, "num_layers": 2}
PATCHES = partial(HyenaPatches, filter=partial(HyenaFilterND, emb_dim=5, width=8))
MIXERS = {"attention": partial(Attention, num_heads=2), "1-D": HyenaOperator, "2-D": PATCHES}


def build(mixer: str = "2-D", options: dict | None = None, **config: object) -> ViT:
    made = partial(MIXERS[mixer], **(options or {}))
    return ViT(ViTConfig(**SMALL | config), made, dtype=torch.float64).eval()


def images(batch: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def test_the_base_model_has_its_parameters() -> None:
    model = ViT(ViTConfig(), partial(Attention, num_heads=12), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 86_567_656  # of torchvision's vit_b_16
    paper = ViT(ViTConfig(class_token=False, positions=False), HyenaOperator, device="meta")
    assert 85e6 < sum(p.numel() for p in paper.parameters()) < 90e6  # 88M


def test_is_its_equations() -> None:
    """Against torch's own encoder layers with the same weights."""
    model, x = build("attention"), images()
    with torch.no_grad():
        weight = model.patches.weight.flatten(1)
        rows = []
        for r in range(4):
            for s in range(6):
                patch = x[:, :, 4 * r : 4 * r + 4, 4 * s : 4 * s + 4].flatten(1)
                rows.append(patch @ weight.T + model.patches.bias)
        h = torch.stack([model.class_token[0, 0].expand(2, -1), *rows], dim=1) + model.positions
        for block in model.blocks:
            layer = nn.TransformerEncoderLayer(
                16, 2, 64, 0.0, "gelu", norm_first=True, batch_first=True, dtype=torch.float64
            )
            layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = block.mixer.in_proj.parameters()
            layer.self_attn.out_proj = block.mixer.out_proj
            layer.norm1, layer.norm2 = block.norm1, block.norm2
            layer.linear1, layer.linear2 = block.mlp.fc1, block.mlp.fc2
            h = layer.train()(h)
        h = F.layer_norm(h, (16,), model.norm.weight, model.norm.bias)
        torch.testing.assert_close(model.hidden_states(x), h)
        torch.testing.assert_close(model(x), h[:, 0] @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("class_token", [True, False])
def test_shapes_and_gradients(mixer: str, class_token: bool) -> None:
    model = build(mixer, class_token=class_token)
    x = images(3).requires_grad_()
    assert model.hidden_states(x).shape == (3, 24 + class_token, 16)
    y = model(x)
    assert y.shape == (3, 5)
    y[:, 0].sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()  # the class token sees every pixel
    for name, p in model.named_parameters():
        if p.numel() == 0:
            continue
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (4, 1)])
@pytest.mark.parametrize("class_token", [True, False])
def test_a_shifted_picture_on_a_torus_is_the_same(class_token: bool, size: tuple[int, int]) -> None:
    model = build(options={"boundary": "circular"}, positions=False, class_token=class_token)
    x = images(2, 4 * size[0], 4 * size[1])
    for patches in ((1, 0), (0, 1), (2, 5)):
        moved = x.roll((4 * patches[0], 4 * patches[1]), (2, 3))
        torch.testing.assert_close(model(moved), model(x))
        h, shifted = (model.hidden_states(each)[:, int(class_token) :].unflatten(1, size) for each in (x, moved))
        torch.testing.assert_close(shifted, h.roll(patches, (1, 2)))
    assert (model(x.roll(1, 3)) - model(x)).abs().max() > 1e-6  # less than a patch is another picture


@pytest.mark.parametrize("mixer", MIXERS)
def test_other_resolutions(mixer: str) -> None:
    model, small = build(mixer), images(1, 12, 16)
    want = model(images(1))
    assert want.shape == model(small).shape == (1, 5)
    large = images(1, 24, 32)
    with pytest.raises(ValueError, match=r"l_max=25|larger than"):
        model(large)
    model.extend((24, 32))
    assert model.config.image_size == (24, 32)
    assert model(large).shape == (1, 5)
    assert model.positions.shape == (1, 49, 16)
    state = ViT(model.config, partial(MIXERS[mixer]), dtype=torch.float64).eval()
    state.load_state_dict(model.state_dict())
    torch.testing.assert_close(state(large), model(large))


def test_positions_of_patches_are_interpolated_over_the_grid() -> None:
    model = build()
    with torch.no_grad():
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
        model.positions[0, 1:, 0], model.positions[0, 1:, 1] = rows.flatten(), columns.flatten()
        model.positions[0, 0] = 7.0
    table = model._positions_of((8, 12))
    assert table.shape == (1, 97, 16)
    assert (table[0, 0] == 7).all()
    found = table[0, 1:, :2].unflatten(0, (8, 12))
    for axis in (0, 1):
        assert (found[..., axis].diff(dim=axis) > 0.1).all()
        assert found[..., axis].diff(dim=1 - axis).abs().max() < 1e-12
        assert found[..., axis].mean().item() == pytest.approx((1.5, 2.5)[axis])
    torch.testing.assert_close(model._positions_of((4, 6)), model.positions)


@pytest.mark.parametrize("kind", [HyenaOperator, PATCHES])
def test_attention_is_replaced(kind) -> None:
    model = build("attention")
    report = hyena.replace_attention(model, mixer=kind)
    assert [(entry.name, entry.old, entry.l_max, entry.causal) for entry in report.replaced] == [
        (f"blocks.{i}.mixer", "Attention", 25, False) for i in range(2)
    ]
    if kind is PATCHES:
        assert [(block.mixer.grid, block.mixer.prefix_tokens) for block in model.blocks] == [((4, 6), 1)] * 2
    x = images().requires_grad_()
    model(x)[:, 0].sum().backward()
    assert (x.grad.abs().amax((0, 1)) > 0).all()
    assert {p.dtype for p in model.parameters()} <= {torch.float64}


def test_a_language_models_attention_is_replaced_and_steps() -> None:
    from hyena.models import CausalLM, CausalLMConfig

    model = CausalLM(CausalLMConfig(vocab_size=11, l_max=20, d_model=16, num_layers=2, mixer="Attention")).eval()
    assert len(hyena.replace_attention(model)) == 2
    assert all(isinstance(block.mixer, HyenaOperator) and block.mixer.causal for block in model.blocks)
    tokens = torch.randint(11, (2, 9))
    want = model(tokens)
    _, state = model.prefill(tokens[:, :8], model.init_state(2))
    torch.testing.assert_close(model.step(tokens[:, 8], state)[0], want[:, 8], rtol=1e-4, atol=1e-4)


def test_initialised_again() -> None:
    model = ViT(ViTConfig(**SMALL), PATCHES, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in model.state_dict().values():
            t.fill_(torch.nan)
    model.reset_parameters()
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert model(images().float()).isfinite().all()


def test_configs_are_saved() -> None:
    config = ViTConfig(**SMALL)
    assert ViTConfig.from_dict(config.to_dict()) == config
    assert (config.grid, config.l_max) == ((4, 6), 25)


def test_bad_values_name_the_numbers() -> None:
    for values, message in [
        ({"image_size": 30}, "image of 30 x 30 pixels is not made of patches of 4 x 4"),
        ({"image_size": (16, 0)}, r"each at least 1, got \(16, 0\)"),
        ({"image_size": (16, 16, 16)}, r"got \(16, 16, 16\)"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"class_token": 1}, "class_token must be True or False, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ViTConfig(**SMALL | values)
    with pytest.raises(ValueError, match="HyenaOperator with causal=True"):
        ViT(ViTConfig(**SMALL), partial(HyenaOperator, causal=True))
    model = build()
    with pytest.raises(ValueError, match=r"images must be \(B, 3, height, width\), got \(2, 1, 16, 24\)"):
        model(torch.zeros(2, 1, 16, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="image of 17 x 24 pixels"):
        model(images(1, 17, 24))
