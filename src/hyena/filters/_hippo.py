"""HiPPO-LegS, the matrix that state spaces start from, in the basis that its normal part is diagonal in.

Dimensions: N = 2 m states, m pairs of conjugate modes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def legs(modes: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as normal plus low rank, ``A = V (Λ - P P*) V*`` (arXiv 2111.00396, theorem 1 and appendix C.1).

    ``A_nk = -sqrt(2n+1) sqrt(2k+1)`` below the diagonal, ``-(n+1)`` on it, and ``B_n = sqrt(2n+1)``. With
    ``P_n = sqrt(n + 1/2)``, ``A + P P^T`` is ``-1/2`` and a skew-symmetric matrix, whose eigenvalues are
    imaginary and come in pairs. Computed in float64 on the CPU.

    Returns:
        The imaginary parts of ``Λ`` above 0, rising (its real parts are all -1/2), ``V* P`` and ``V* B``, ``(m,)``
        each. The other half of each is the conjugate.
    """
    n = torch.arange(2 * modes, dtype=torch.float64, device="cpu")
    p, b = (n + 0.5).sqrt(), (2 * n + 1).sqrt()
    lower = torch.tril(torch.outer(p, p), -1)
    # Eigenvalues of a skew-symmetric matrix S are i times those of the Hermitian -i S.
    frequency, vectors = torch.linalg.eigh(-1j * (lower.T - lower).to(torch.complex128))
    basis = vectors[:, modes:].conj().T
    return frequency[modes:], basis @ p.to(basis.dtype), basis @ b.to(basis.dtype)
