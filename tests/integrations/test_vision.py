"""Hyena in timm's and torchvision's vision transformers; where they cannot be imported, in what is made like them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from helpers.attention_models import operators
from hyena.integrations import load_pretrained, replace_attention
from hyena.integrations.adapters.vision import TimmAdapter
from hyena.mixers import HyenaPatches


def made_like_timm() -> nn.Module:
    """The parts of timm's VisionTransformer that a replacement reads, under timm's names."""

    class Attention(nn.Module):
        def __init__(self, dim: int = 16, heads: int = 4) -> None:
            super().__init__()
            self.num_heads = heads
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.attn_drop, self.proj_drop = nn.Dropout(0.25), nn.Dropout(0.125)

        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            raise AssertionError("it is replaced")

    Attention.__module__, Attention.__qualname__ = "timm.layers.attention", "Attention"

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 16, 4, 4)
            self.patch_embed.num_patches, self.patch_embed.grid_size, self.num_prefix_tokens = 9, (3, 3), 1
            self.blocks = nn.ModuleList([nn.ModuleDict({"attn": Attention()}) for _ in range(2)])

        def forward(self, image: Tensor) -> Tensor:
            x = nn.functional.pad(self.patch_embed(image).flatten(2).transpose(1, 2), (0, 0, 1, 0))
            for block in self.blocks:
                x = x + block["attn"](x, attn_mask=None)
            return x[:, 0]

    return VisionTransformer()


def timm() -> nn.Module:
    return imported("timm").create_model("vit_tiny_patch16_224", img_size=48, depth=2, num_classes=5)


def torchvision() -> nn.Module:
    kind = imported("torchvision").models.VisionTransformer
    return kind(image_size=12, patch_size=4, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=32, num_classes=5)


def imported(name: str) -> ModuleType:
    try:
        return __import__(name)
    except (ImportError, RuntimeError) as e:  # a torchvision of another build of torch raises RuntimeError
        for loaded in [m for m in sys.modules if m.partition(".")[0] in (name, "torchvision")]:
            del sys.modules[loaded]
        pytest.skip(f"{name} cannot be imported: {str(e).splitlines()[0]}")


@pytest.mark.parametrize("make", [made_like_timm, timm, torchvision])
def test_vision_transformers(make):
    model = make()
    size = 48 if make is timm else 12
    report = replace_attention(model)
    assert [(entry.l_max, entry.causal) for entry in report.replaced] == [(10, False)] * 2
    image = torch.randn(2, 3, size, size)
    model(image).square().sum().backward()
    assert all(p.grad is not None for op in operators(model) for p in op.parameters())


def patches_of(model: nn.Module) -> list[HyenaPatches]:
    return [m for m in model.modules() if isinstance(m, HyenaPatches)]


def made_by_transformers() -> nn.Module:
    models = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return models.ViTModel(models.ViTConfig(image_size=12, patch_size=4, **sizes))


@pytest.mark.parametrize("make", [made_like_timm, timm, torchvision, made_by_transformers])
def test_over_the_grid_of_patches(make):
    model = make().eval()
    report = replace_attention(model, mixer=HyenaPatches)
    assert [(entry.l_max, entry.causal) for entry in report.replaced] == [(10, False)] * 2
    assert [(op.grid, op.prefix_tokens) for op in patches_of(model)] == [((3, 3), 1)] * 2
    with torch.no_grad():  # torchvision's head starts at zero
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    size = 48 if make is timm else 12
    image = torch.randn(2, 3, size, size, requires_grad=True)
    y = model(image)
    y = y if isinstance(y, Tensor) else y.last_hidden_state[:, 0]
    y[:, 0].sum().backward()
    patches = torch.nn.functional.unfold(image.grad, size // 3, stride=size // 3).abs().amax((0, 1))
    assert (patches > 1e-12).all()  # the class token sees every patch
    assert all(p.grad is not None for op in patches_of(model) for p in op.parameters())


@pytest.mark.parametrize("name", ["DeiT", "CLIPVision"])
def test_tokens_before_the_patches_are_counted(name):
    models = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    model = getattr(models, f"{name}Model")(getattr(models, f"{name}Config")(image_size=12, patch_size=4, **sizes))
    replace_attention(model, mixer=HyenaPatches)
    assert [(op.grid, op.prefix_tokens) for op in patches_of(model)] == [((3, 3), 2 if name == "DeiT" else 1)]
    assert model(pixel_values=torch.randn(2, 3, 12, 12)).last_hidden_state.isfinite().all()


def test_models_of_windows_are_not_taken_for_grids():
    models = pytest.importorskip("transformers")
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    model = models.SwinModel(models.SwinConfig(image_size=32, patch_size=2, **sizes))
    # In older releases of transformers its attention returns what no adapter knows, and stays for that.
    with pytest.raises(ValueError, match=r"the patches around .* are not known|it is not known what its forward"):
        replace_attention(model, mixer=HyenaPatches)


def test_saved_with_its_grid(tmp_path):
    model = made_by_transformers().eval()
    replace_attention(model, mixer=HyenaPatches)
    model.save_pretrained(tmp_path)
    loaded, image = load_pretrained(tmp_path).eval(), torch.randn(2, 3, 12, 12)
    assert torch.equal(loaded(image).last_hidden_state, model(image).last_hidden_state)


def test_grids_that_nobody_knows_are_asked_for():
    model = nn.TransformerEncoderLayer(16, 4, batch_first=True)
    with pytest.raises(ValueError, match=r"pass grid=\(rows, columns\) and prefix_tokens="):
        replace_attention(model, mixer=HyenaPatches, l_max=13)
    replace_attention(model, mixer=HyenaPatches, l_max=13, grid=(3, 4), prefix_tokens=1)
    assert model(torch.randn(2, 13, 16)).shape == (2, 13, 16)


def test_masks_of_timm():
    model = made_like_timm()
    replace_attention(model)
    adapter = model.blocks[0]["attn"].eval()
    assert isinstance(adapter, TimmAdapter)
    assert (adapter.operator.dropout.p, adapter.output_dropout.p) == (0.25, 0.125)
    x, keep = torch.randn(2, 10, 16), torch.arange(10) < torch.tensor([[10], [6]])
    for mask in (keep[:, None, None], keep[:, None, None].expand(2, 1, 10, 10)):
        torch.testing.assert_close(adapter(x, attn_mask=mask)[1, :6], adapter(x[1:, :6])[0])
    with pytest.raises(ValueError, match="more than padding"):
        adapter(x, attn_mask=torch.randn(2, 1, 10, 10))
    with pytest.raises(ValueError, match="is_causal=True"):
        adapter(x, is_causal=True)
    with pytest.raises(TypeError):
        adapter(x, nonsense=1)
