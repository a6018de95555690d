"""HiPPO-LegS, the matrix that state spaces start from, in the basis that its normal part is diagonal in.

Dimensions: N = 2 m states, m pairs of conjugate modes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normal_part(modes: int) -> tuple[Tensor, Tensor]:
    """The normal part of HiPPO-LegS, ``V Λ V*``: ``-1/2`` and a skew-symmetric matrix, whose eigenvalues are imaginary.

    Returns:
        The imaginary parts of ``Λ`` above 0, rising (its real parts are all -1/2), ``(m,)``, and their part of ``V*``,
        ``(m, N)``. The other half of each is the conjugate. Computed in float64 on the CPU.
    """
    root = (torch.arange(2 * modes, dtype=torch.float64, device="cpu") + 0.5).sqrt()
    lower = torch.tril(torch.outer(root, root), -1)
    # Eigenvalues of a skew-symmetric matrix S are i times those of the Hermitian -i S.
    frequency, vectors = torch.linalg.eigh(-1j * (lower.T - lower).to(torch.complex128))
    return frequency[modes:], vectors[:, modes:].conj().T


def legs(modes: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus low rank, ``A = V (Λ - P P*) V*`` (arXiv 2111.00396, theorem 1 and appendix C.1).

    ``A_nk = -sqrt(2n+1) sqrt(2k+1)`` below the diagonal, ``-(n+1)`` on it, and ``B_n = sqrt(2n+1)``. With
    ``P_n = sqrt(n + 1/2)``, ``A + P P^T`` is :func:`normal_part`.

    Returns:
        The imaginary parts of ``Λ`` above 0, ``V* P`` and ``V* B``, ``(m,)`` each; the other half is the conjugate.
    """
    n = torch.arange(2 * modes, dtype=torch.float64, device="cpu")
    p, b = (n + 0.5).sqrt(), (2 * n + 1).sqrt()
    frequency, basis = normal_part(modes)
    return frequency, basis @ p.to(basis.dtype), basis @ b.to(basis.dtype)
