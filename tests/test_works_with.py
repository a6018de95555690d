"""The table of the README: what hyena works with. Rows whose tests are elsewhere name them; the others' are here."""

from __future__ import annotations

import ast
import copy
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hyena
from hyena.models import CausalLM, CausalLMConfig

ROOT = Path(__file__).parent.parent
V, L = 30, 24


def model(**options: Any) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(CausalLMConfig(vocab_size=V, l_max=L, d_model=32, num_layers=2, **options))


def tokens(rows: int = 8) -> Tensor:
    return torch.randint(V, (rows, L), generator=torch.Generator().manual_seed(1))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(hyena.param_groups(module, lr=1e-2))


# The table itself


def rows() -> list[tuple[str, list[str]]]:
    """Name and tests of every row."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Works with")[1].split("\n## ")[0]
    lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return [(line[0].lstrip("| "), re.findall(r"`(tests/[\w/.]+::\w+)`", line[-1])) for line in lines]


def test_every_row_has_tests_that_exist() -> None:
    assert len(rows()) >= 10
    for name, tests in rows():
        assert tests, name
        for test in tests:
            path, _, function = test.partition("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{name}: {test}"


def test_every_test_here_is_in_a_row() -> None:
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    here = {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}
    named = {
        test.partition("::")[2] for _, tests in rows() for test in tests if test.startswith("tests/test_works_with")
    }
    assert here - named == {"test_every_row_has_tests_that_exist", "test_every_test_here_is_in_a_row"}


def test_the_versions_of_the_table() -> None:
    """The oldest releases that it names are those of the metadata, and the installed torch is none older."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    said = {name: text for name, text in re.findall(r"^\| (torch|transformers) \| ([\d.]+)", _table(), re.MULTILINE)}
    assert said == {
        "torch": re.search(r'"torch>=([\d.]+)"', project)[1],
        "transformers": re.search(r'"transformers>=([\d.]+)"', project)[1],
    }
    installed = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    assert installed >= tuple(map(int, said["torch"].split(".")))


def _table() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").split("## Works with")[1]


# Lightning


def lightning_module(kind: type, net: CausalLM, losses: list[float]) -> Any:
    class Language(kind):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss = self.net.loss(batch[0][:, :-1], batch[0][:, 1:])
            losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.net)

    return Language()


def lightning_trainer(lightning: Any, folder: Path, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **options,
    )  # fmt: skip


def batches() -> DataLoader:
    return DataLoader(TensorDataset(tokens()), batch_size=8)


def plain_steps(net: CausalLM, steps: int) -> list[float]:
    optimizer, losses = optimizer_of(net), []
    for _ in range(steps):
        batch = tokens()
        loss = net.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path) -> None:
    """The weights of a loop by hand; and a run that goes on from its checkpoint."""
    lightning = pytest.importorskip("lightning")
    twin, net, losses = model(), model(), []
    want = plain_steps(twin, 6)
    lightning_trainer(lightning, tmp_path, max_steps=6, max_epochs=-1).fit(
        lightning_module(lightning.LightningModule, net, losses), batches()
    )
    assert losses == pytest.approx(want, rel=1e-6)
    for (name, a), b in zip(twin.named_parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    first, second = [], []
    stopped = lightning_trainer(lightning, tmp_path, max_steps=4, max_epochs=-1)
    stopped.fit(lightning_module(lightning.LightningModule, model(), first), batches())
    stopped.save_checkpoint(tmp_path / "run.ckpt")
    again = lightning_trainer(lightning, tmp_path, max_steps=6, max_epochs=-1)
    again.fit(lightning_module(lightning.LightningModule, model(), second), batches(), ckpt_path=tmp_path / "run.ckpt")
    assert first + second == pytest.approx(want, rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_lightning_in_mixed_precision(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    net, losses = model(), []
    trainer = lightning_trainer(lightning, tmp_path, max_steps=12, precision="bf16-mixed")
    trainer.fit(lightning_module(lightning.LightningModule, net, losses), batches())
    assert losses[-1] < 0.8 * losses[0]
    assert losses[:4] == pytest.approx(plain_steps(model(), 4), rel=0.02)
    assert all(p.dtype == torch.float32 for p in net.parameters())


# torchao


def torchao_quantization() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.quantization")


@pytest.mark.filterwarnings("ignore")
def test_torchao() -> None:
    """Projections and MLPs in int8: what the model with the rounded weights gives, at once and step by step."""
    ao = torchao_quantization()
    whole = model().eval()
    quantised = copy.deepcopy(whole)
    ao.quantize_(quantised, ao.Int8WeightOnlyConfig())
    changed = [name for name, p in quantised.named_parameters() if type(p) is not nn.Parameter]
    for part in ("mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2"):
        assert f"blocks.0.{part}.weight" in changed
    rounded = copy.deepcopy(whole)
    weights = dict(quantised.named_parameters())
    rounded.head.weight = nn.Parameter(rounded.head.weight.clone())  # the embedding is not rounded
    with torch.no_grad():
        for name in changed:
            rounded.get_parameter(name).copy_(weights[name].dequantize())
        want, got = rounded(tokens()), quantised(tokens())
        assert (whole(tokens()) - want).abs().max() > 1e-4
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        state = quantised.init_state(8)
        _, state = quantised.prefill(tokens()[:, : L - 1], state)
        last, _ = quantised.step(tokens()[:, L - 1], state)
        torch.testing.assert_close(last, want[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_torchao_with_rounded_activations() -> None:
    ao = torchao_quantization()
    whole = model().eval()
    quantised = copy.deepcopy(whole)
    ao.quantize_(quantised, ao.Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        want, got = whole(tokens()), quantised(tokens())
    assert 1e-4 < (want - got).norm() / want.norm() < 0.05
    assert quantised.generate(tokens(1)[:, :4], 5, temperature=0)[0].numel() == 9
