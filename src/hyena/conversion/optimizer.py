"""AdamW over parameter groups, with the schedule of a stage."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from hyena.conversion.settings import schedule
from hyena.optim import param_groups


class Optimizer:
    """Steps of one stage.

    Args:
        module: whose parameters that require gradients are trained.
        lr, weight_decay: see :func:`hyena.param_groups`.
        steps: of the stage.
        clip: the largest norm of all gradients together, None for no limit.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float, steps: int, clip: float | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of groups without parameters: which there are is not the caller's choice
            groups = param_groups(module, lr, weight_decay)
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        self.rates = [group["lr"] for group in self.adamw.param_groups]
        self.steps, self.clip, self.done = steps, clip, 0

    def step(self) -> None:
        """Takes a step and forgets the gradients."""
        factor = schedule(self.done, self.steps)
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for group in self.adamw.param_groups for p in group["params"]], self.clip)
        self.adamw.step()
        self.adamw.zero_grad()
        self.done += 1

    def state(self) -> dict[str, Any]:
        """What the rest of the steps depend on."""
        return {"adamw": self.adamw.state_dict(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state`."""
        self.adamw.load_state_dict(state["adamw"])
        self.done = state["done"]
