"""Builders of Hyena in place of known attention: one module a project, each registers what it knows."""

from hyena.integrations.adapters import family, nanogpt, vision
from hyena.integrations.adapters import torch as torch_modules
from hyena.integrations.adapters import transformers as transformers_models
from hyena.integrations.sites import AttentionSite

__all__ = ["check", "family", "finish", "nanogpt", "torch_modules", "transformers_models", "vision"]


def check(kept: list[AttentionSite], replaced: list[AttentionSite]) -> None:
    """Raises ValueError where what stays would not work beside what is replaced."""
    transformers_models.check_kept(kept, replaced)


def finish(replaced: list[AttentionSite]) -> None:
    """What the models around ``replaced`` need after the swap."""
    transformers_models.carry_padding(replaced)
