"""Replacements put into the model, and taken out again when something goes wrong."""

from __future__ import annotations

from torch import nn

from hyena.integrations.replace import ReplacementPlan


class Swap:
    """A plan carried out.

    Args:
        model: changed in place.
        plan: what takes whose place.
        original: a copy of the model as it was, whose weights :meth:`undo` gives back.
    """

    def __init__(self, model: nn.Module, plan: ReplacementPlan, original: nn.Module) -> None:
        self.model, self.plan, self.original = model, plan, original
        self._hooks = {part: set(part._forward_pre_hooks) for part in model.modules()}
        self.report = plan.carry_out(model)

    def undo(self) -> None:
        """The model as it was: its attention, its weights, and none of the hooks that came with the replacements."""
        for site, _ in self.plan.swaps:
            setattr(site.parents[-1], site.name.rpartition(".")[2], site.module)
        for part in self.model.modules():
            for handle in set(part._forward_pre_hooks) - self._hooks.get(part, set(part._forward_pre_hooks)):
                part._forward_pre_hooks.pop(handle)
                part._forward_pre_hooks_with_kwargs.pop(handle, None)
        self.model.load_state_dict(self.original.state_dict())
