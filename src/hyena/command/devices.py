"""Where a command's model is: what --device names."""

from __future__ import annotations

import torch


def device_of(name: str | None) -> torch.device:
    """The device of --device: a GPU if there is one and none is named.

    Raises:
        ValueError: there is no such device, in one line.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a torch without CUDA knows the name all the same
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
