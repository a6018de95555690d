"""What Hyena learned, at a toy's size; and its measures beside their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("tqdm")

from experiments.learned import measures
from experiments.learned.__main__ import where_it_looks
from experiments.learned.report import enough
from experiments.recall.tasks import associative_recall
from experiments.shared.models import language_model

from helpers.experiments import loss_falls


def model(mixer: str = "hyena", length: int = 24) -> Any:
    torch.manual_seed(0)
    return language_model(mixer, 10, length, width=8, layers=2, heads=2).eval()


def test_a_short_run(toy: Callable[..., dict[str, Any]]) -> None:
    found = toy("learned", "--seeds", "1")
    assert [(run["settings"]["job"], run["settings"]["mixer"]) for run in found["runs"]] == [
        ("recall", "hyena"),
        ("recall", "attention"),
        ("characters", "hyena"),
    ]
    assert all(loss_falls(run) for run in found["runs"])
    for run, row in zip(found["runs"], found["table"]["Held-out loss"], strict=True):
        assert row["loss"]["mean"] == run["result"]["loss"]
        assert f"{row['loss']['mean']:.4g}" in found["printed"]
    cut = found["runs"][0]["result"]["cut"]
    assert [each["taps"] for each in cut] == [1, 2, 4, 8, 16]
    assert cut[-1]["loss"] == pytest.approx(found["runs"][0]["result"]["loss"], rel=1e-5)
    assert found["printed"].count(".png") == 3


def test_cut_filters_are_the_convolution_with_fewer_taps() -> None:
    net = model()
    operator = measures.operators(net)[0]
    u = torch.randn(2, 24, 8)
    with torch.no_grad():
        whole = operator(u)
        h = operator.conv.filter(24)[0].double()  # (K, C)
        with measures.cut(net, 5):
            got = operator(u)
        assert torch.equal(operator(u), whole)
        x0, x1, v = operator.short(operator.in_proj(u)).double().split(8, dim=2)
        gated = x1 * v
        mixed = operator.conv.bias[0].double() * gated
        for t in range(24):
            for lag in range(min(5, t + 1)):
                mixed[:, t] += h[lag] * gated[:, t - lag]
        want = (x0 * mixed) @ operator.out_proj.weight.double().T + operator.out_proj.bias.double()
        assert torch.equal(measures.Cut(operator.conv.filter, 5)(24)[0].double(), h * (torch.arange(24) < 5)[:, None])
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, whole, atol=1e-4)


def test_reach_and_energy() -> None:
    h = torch.zeros(2, 8, 3)
    h[0, 0], h[0, 5] = 3.0, 1.0  # 90 % by the first tap, all by the sixth
    h[1, 2] = torch.tensor([1.0, 2.0, -4.0])
    assert measures.reach(h, 0.89) == [1, 3]
    assert measures.reach(h, 0.99) == [6, 3]
    assert measures.reach(torch.ones(1, 4, 1), 0.5) == [2]
    assert measures.energy(h)[0, :, 0].tolist() == pytest.approx([0.9] * 5 + [1.0] * 3)


@pytest.mark.parametrize("length", [8, 64, 100, 128, 300])
def test_spectra(length: int) -> None:
    """An impulse is flat; a cosine is in its band."""
    impulse = torch.zeros(1, length, 1)
    impulse[0, 0] = 1.0
    flat = measures.spectrum(impulse)
    assert flat.sum() == pytest.approx(1.0)
    assert measures.centre(flat)[0] == pytest.approx(0.25, abs=0.01)
    wave = torch.cos(2 * torch.pi * 0.4 * torch.arange(length))[None, :, None]
    assert measures.centre(measures.spectrum(wave))[0] == pytest.approx(0.4, abs=0.08 if length == 8 else 0.02)


@pytest.mark.parametrize("mixer", ["hyena", "attention"])
def test_matrices_are_those_of_the_layers_inputs(mixer: str) -> None:
    net, tokens = model(mixer), torch.randint(10, (2, 24), generator=torch.Generator().manual_seed(1))
    first, second = measures.matrices(net, tokens)
    x = net.embedding(tokens)
    if mixer == "attention":
        x = x + net.positions(torch.arange(24))
    with torch.no_grad():
        torch.testing.assert_close(first, net.blocks[0].mixer.to_matrix(net.blocks[0].norm1(x)))
        x = net.blocks[0](x)
        torch.testing.assert_close(second, net.blocks[1].mixer.to_matrix(net.blocks[1].norm1(x)))
    assert not net.blocks[0].mixer._forward_pre_hooks


def test_looks() -> None:
    """Rows that look three times as much at values of the asked key; that nearer places weigh more is not a look."""
    tokens, _ = associative_recall(400, 32, 10, torch.Generator().manual_seed(0))
    recent = 0.95 ** torch.arange(32).flip(0)
    asked = torch.zeros(400, 32)
    asked[:, 1:30:2] = (tokens[:, 0:30:2] == tokens[:, -1:]).float()
    rows = torch.stack([-recent * (1 + 2 * asked), recent.expand(400, 32)], 1)
    rows = rows * torch.tensor([1.0, -1.0]).repeat(16)  # the size counts, not the sign
    found = measures.looks(rows, tokens)
    assert found[0, 1] == pytest.approx(3.0, rel=0.1)
    assert found[0, [0, 2, 3]].tolist() == pytest.approx([1.0] * 3, rel=0.2)
    assert found[1].tolist() == pytest.approx([1.0] * 4)


def test_all_channels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loud when asked for: channels that weigh all places alike, and of which a place's own is loud, look together."""
    tokens, _ = associative_recall(400, 32, 10, torch.Generator().manual_seed(0))

    def matrices(model: Any, part: torch.Tensor) -> list[torch.Tensor]:
        asked = torch.zeros(len(part), 32)
        asked[:, 1:30:2] = (part[:, 0:30:2] == part[:, -1:]).float()
        last = torch.stack([asked, torch.ones_like(asked)], 1)  # together sqrt(1 + asked) / sqrt(2)
        return [last[:, :, None].expand(-1, -1, 32, -1)]

    monkeypatch.setattr(measures, "matrices", matrices)
    found = where_it_looks(model(), tokens, "cpu", drawn=False)
    assert found["looks"][0] == pytest.approx([1.0, 2**0.5, 1.0, 1.0], rel=0.05)
    assert "pictures" not in found


def test_enough_taps() -> None:
    cut = [{"taps": k, "loss": loss} for k, loss in ((1, 2.0), (2, 1.5), (4, 1.505), (8, 1.509), (16, 1.5))]
    assert enough({"cut": cut}) == 2
    cut[2]["loss"] = 1.6
    assert enough({"cut": cut}) == 8
