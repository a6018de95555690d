"""ONNX files in onnxruntime: any batch and length, masks, tables of taps, and what cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.cases import make_mask
from hyena import HyenaOperator
from hyena.export import OnnxFile, to_onnx
from hyena.filters import ModalFilter
from hyena.mixers import BigBird
from hyena.models import CausalLM, CausalLMConfig, HyenaDNA, HyenaDNAConfig

pytest.importorskip("onnxscript", reason="hyena[onnx] is not installed")
ort = pytest.importorskip("onnxruntime", reason="hyena[onnx] is not installed")
D, L_MAX = 8, 8209


def session(file: OnnxFile) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    return ort.InferenceSession(str(file.path), options, providers=["CPUExecutionProvider"])


def check(model: nn.Module, file: OnnxFile, lengths: tuple[int, ...]) -> Any:
    """Outputs of the file against the model's."""
    run = session(file)
    names = list(file.inputs)
    with torch.no_grad():
        for i, length in enumerate(lengths):
            batch = 1 + i % 2
            args: list[Tensor] = [
                torch.randn(batch, length, D) if names[0] == "u" else torch.randint(4, (batch, length)),
                *(make_mask("random", batch, length) for _ in names[1:]),
            ]
            (found,) = run.run(None, {name: t.numpy() for name, t in zip(names, args, strict=True)})
            got, want = torch.from_numpy(found), model(*args)
            if len(args) > 1:
                got, want = got[args[1]], want[args[1]]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    return run


LENGTHS = (1, 17, 1000, 4096, 8209)


def test_operator(tmp_path: Path) -> None:
    m = HyenaOperator(D, L_MAX)
    file = to_onnx(m, tmp_path / "m.onnx")
    assert m.training
    assert file.inputs == {"u": ("batch", "length", D)}
    assert file.outputs == {"y": ("batch", "length", D)}
    assert file.opset == 18
    assert file.bytes == file.path.stat().st_size < 1 << 20
    run = check(m.eval(), file, LENGTHS)
    with pytest.raises(Exception, match="row_longer_than_l_max"):
        run.run(None, {"u": torch.randn(1, L_MAX + 1, D).numpy()})


def test_language_model_with_mask(tmp_path: Path) -> None:
    m = CausalLM(CausalLMConfig(vocab_size=7, l_max=L_MAX, d_model=D, num_layers=1)).eval()
    file = to_onnx(m, tmp_path / "m.onnx", mask=True)
    assert list(file.inputs) == ["tokens", "mask"]
    check(m, file, LENGTHS)


def test_hyenadna(tmp_path: Path) -> None:
    m = HyenaDNA(HyenaDNAConfig(l_max=L_MAX, d_model=D, num_layers=1, head="lm")).eval()
    check(m, to_onnx(m, tmp_path / "m.onnx", opset=20), LENGTHS)


@pytest.mark.parametrize("modal", [False, True])
def test_tables_of_taps(tmp_path: Path, modal: bool) -> None:
    """Of every filter, and without being asked where a filter cannot be traced."""
    options: dict[str, Any] = {"filter": ModalFilter(D, 300, modes=3)} if modal else {"causal": False}
    m = HyenaOperator(D, 300, **options).eval()
    shortest = 1 if modal else 3
    file = to_onnx(m, tmp_path / "m.onnx", stored_taps=not modal, min_length=shortest)
    run = check(m, file, (shortest, 31, 32, 33, 300))
    for wrong in {301, shortest - 1} - {0}:
        with pytest.raises(Exception, match="row_longer_than_l_max"):
            run.run(None, {"u": torch.randn(1, wrong, D).numpy()})


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    m, path = HyenaOperator(D, 64), tmp_path / "m.onnx"
    with pytest.raises(ValueError, match=r"opset=17 is too old: torch\.onnx writes opset 18"):
        to_onnx(m, path, opset=17)
    with pytest.raises(ValueError, match="input_names came without args"):
        to_onnx(m, path, input_names=["u"])
    with pytest.raises(ValueError, match="models that need no args"):
        to_onnx(m, path, (torch.randn(1, 9, D),), mask=True)
    with pytest.raises(ValueError, match="min_length must be 1 to l_max=64, got 65"):
        to_onnx(m, path, min_length=65)
    with pytest.raises(TypeError, match="what a Linear is called with is not known: pass args"):
        to_onnx(nn.Linear(2, 2), path)
    config = CausalLMConfig(
        vocab_size=7, l_max=64, d_model=D, num_layers=1, mixer=BigBird, mixer_options={"block": 4, "num_heads": 2}
    )
    with pytest.raises(ValueError, match=r"blocks.0.mixer, a BigBird, cannot be exported: .*min_length=5 would do"):
        to_onnx(CausalLM(config), path)
    with pytest.raises(ValueError, match=r"this HyenaOperator cannot be exported: .*min_length=3 would do"):
        to_onnx(HyenaOperator(D, 64, causal=False), path)
    assert not path.exists()


def test_any_other_module(tmp_path: Path) -> None:
    """With inputs and sizes of one's own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = HyenaOperator(D, 64)

        def forward(self, u: Tensor) -> Tensor:
            return 2 * self.m(u)

    m = Twice().eval()
    file = to_onnx(m, tmp_path / "m.onnx", (torch.randn(2, 10, D),), input_names=["u"], output_names=["y"])
    assert file.inputs == {"u": (2, 10, D)}
    u = torch.randn(2, 10, D)
    (y,) = session(file).run(None, {"u": u.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), m(u), rtol=0, atol=1e-5)
