"""Tries the installed hyena: ``python try_wheel.py kernels`` or ``pure``, whichever of the two is to be there.

An operator, its gradient, a step of decoding and the command; with the kernels also against plain PyTorch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

_NUMBERS = """
import torch, hyena
torch.manual_seed(0)
op = hyena.HyenaOperator(32, 300)
u = torch.randn(2, 257, 32, requires_grad=True)
y = op(u)
y.square().sum().backward()
print(y.square().sum().item(), u.grad.abs().sum().item())
"""


def main(expected: str) -> None:
    """Raises AssertionError for an installation that is not as it should be."""
    warnings.simplefilter("ignore", RuntimeWarning)
    import torch

    import hyena
    from hyena.ops._extension import EXTENSION

    print(f"{hyena.__file__}: torch {torch.__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    print(hyena.backend_report())
    assert (EXTENSION.instructions is not None) == (expected == "kernels"), EXTENSION.reason

    op = hyena.HyenaOperator(32, 300).eval()
    u = torch.randn(2, 257, 32)
    y = op(u)
    state = op.init_state(batch=2)
    with torch.no_grad():
        _, state = op.prefill(u[:, :256], state)
        last, _ = op.step(u[:, 256], state)
    torch.testing.assert_close(last, y[:, 256], rtol=1e-4, atol=1e-4)

    here, plain = (_numbers({}), _numbers({"HYENA_DISABLE_EXT": "1"}))
    assert all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(here, plain)), (here, plain)
    subprocess.run([sys.executable, "-W", "ignore", "-m", "hyena", "--help"], check=True, stdout=subprocess.DEVNULL)
    print(f"hyena works here, {'with' if expected == 'kernels' else 'without'} compiled kernels")


def _numbers(environment: dict[str, str]) -> list[float]:
    """What a fresh process computes."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _NUMBERS],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(number) for number in run.stdout.split()]


if __name__ == "__main__":
    if sys.argv[1:] not in (["kernels"], ["pure"]):
        sys.exit("expected: try_wheel.py kernels | pure")
    main(sys.argv[1])
