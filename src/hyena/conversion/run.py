"""A conversion under way: its stages, and its state between any two steps."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from hyena.conversion import state as saved
from hyena.conversion.batches import Batches
from hyena.conversion.joint import Joint, no_labels
from hyena.conversion.layers import Layer, layers_of
from hyena.conversion.matching import Matching, begin
from hyena.conversion.measure import Evaluation
from hyena.conversion.optimizer import Optimizer
from hyena.conversion.outputs import Forward
from hyena.conversion.progress import Progress
from hyena.conversion.report import ConversionReport, LayerReport
from hyena.conversion.settings import Settings
from hyena.conversion.swap import Swap
from hyena.integrations.adapters.transformers.record import encode
from hyena.integrations.replace import ReplacementPlan

# Of the gradient of all parameters together, in the joint stage. In the first stage layers do not know each other.
CLIP = 1.0

Step = Callable[[Any], tuple[float, int]]


class Run:
    """The stages of :func:`hyena.convert`.

    Args:
        model: with attention.
        plan: what would replace all of it.
        settings: checked.
        forward: see :func:`hyena.convert`.
        replacement: keywords of ``replace_attention``, for the record.
        folder: of the state, None to keep none.
        progress: whether to show it.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: ReplacementPlan,
        settings: Settings,
        *,
        forward: Forward | None,
        replacement: dict[str, Any],
        folder: Path | None,
        progress: bool,
    ) -> None:
        self.model, self.settings, self.forward = model, settings, forward
        self.folder, self.progress = folder, progress
        self.all = layers_of(plan.swaps)
        settings.check_layers(len(self.all))
        self.layers = [layer for layer in self.all if layer.index not in settings.keep]
        self.plan = plan.without([self.all[i].new for i in settings.keep], "keep= leaves it")
        self.plan.check()
        if settings.keep_worst > 0:
            for layer in self.layers:
                self.plan.without([layer.new], "").check()
        self.news = nn.ModuleList([layer.new for layer in self.layers])
        self.report = ConversionReport(
            layers=[LayerReport(layer.index, layer.name, layer.index not in settings.keep) for layer in self.all],
            tokens={"layers": 0, "logits": 0, "total": 0},
            steps={"layers": 0, "logits": 0},
            seconds={"layers": 0.0, "logits": 0.0},
            history={"layers": [], "logits": []},
            settings={**settings.to_dict(), "replacement": re.sub(r" at 0x[0-9a-f]+", "", encode(replacement))},
        )
        for i in settings.keep:
            self.report.layers[i].note = "keep= leaves it"
        self.stage = "layers"
        self.optimizer: Optimizer | None = None
        self.swap: Swap | None = None

    @property
    def longest(self) -> int | None:
        """The longest row that any replacement takes, None if there is one without a limit."""
        each = [layer.mixer.l_max for layer in self.layers]
        return None if None in each else max(each)

    def run(self, batches: Batches, held_out: list[Any]) -> ConversionReport:
        """All that is left to do; after an error the model is as it was."""
        identity = None if self.folder is None else self._identity()
        state = None if self.folder is None else saved.load(self.folder, identity or {})
        self.identity = identity
        self.evaluation = Evaluation(held_out, self.forward, self.settings.objective)
        try:
            if state is None:
                self._begin(batches)
            else:
                self._resume(state, batches)
            if self.stage == "layers":
                self._teach_layers(batches)
            if self.stage == "logits":
                self._train_together(batches)
        except BaseException:
            if self.swap is not None:
                self.swap.undo()
            raise
        return self.report

    def _begin(self, batches: Batches) -> None:
        report, s = self.report, self.settings
        report.attention = self.evaluation.attention(self.model)
        if s.label_weight > 0 and s.logit_steps > 0 and report.attention.loss is None:
            raise ValueError(no_labels(s.label_weight))
        if s.start != "random":
            seen = batches.peek(s.start_batches)
            found = begin(self.model, self.layers, seen, self.forward, s.start or "attention")
            refused = [f"{layer.name}: {note}" for layer, (_, note, _) in zip(self.layers, found, strict=True) if note]
            if s.start is not None and refused:
                raise ValueError(
                    f"start={s.start!r} is not possible for {'; '.join(refused)}: pass another start, or None, which "
                    "takes from attention what is possible"
                )
            for layer, (start, note, error) in zip(self.layers, found, strict=True):
                entry = report.layers[layer.index]
                entry.start, entry.note, entry.filter_error = start, note, error
        errors, report.tokens["evaluation"] = self.evaluation.errors(self.model, self.layers)
        for layer, error in zip(self.layers, errors, strict=True):
            report.layers[layer.index].error_before = error
        report.swapped = self.evaluation.swapped(self.model, self.layers)
        self.optimizer = self._optimizer(self.news, s.lr, s.layer_steps, None)
        self._save(batches)

    def _teach_layers(self, batches: Batches) -> None:
        assert self.optimizer is not None
        matching = Matching(self.model, self.layers, self.forward, self.optimizer)
        self._steps(batches, self.settings.layer_steps, matching.step)
        errors, _ = self.evaluation.errors(self.model, self.layers)
        for layer, error in zip(self.layers, errors, strict=True):
            entry = self.report.layers[layer.index]
            entry.error_after = error
            entry.alone = self.evaluation.swapped(self.model, [layer]).divergence
        self._keep_worst()
        self.report.taught = self.evaluation.swapped(self.model, self.layers)
        self._swap()
        self.stage = "logits"
        self.optimizer = self._optimizer(self.model, self.settings.logit_lr, self.settings.logit_steps, CLIP)
        self._save(batches)

    def _keep_worst(self) -> None:
        """Leaves attention where replacing it alone changes the outputs most."""
        ranked = sorted(self.layers, key=lambda layer: self.report.layers[layer.index].alone or 0.0)
        self._drop(ranked[len(ranked) - self.settings.keep_worst :])

    def _drop(self, worst: list[Layer]) -> None:
        for layer in worst:
            entry = self.report.layers[layer.index]
            entry.converted, entry.note = False, "one of the worst"
        self.plan = self.plan.without([layer.new for layer in worst], "one of the worst")
        self.layers = [layer for layer in self.layers if layer not in worst]

    def _swap(self) -> None:
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.swap = Swap(self.model, self.plan, self.teacher)

    def _train_together(self, batches: Batches) -> None:
        s = self.settings
        if s.logit_steps > 0:
            assert self.optimizer is not None
            joint = Joint(self.model, self.teacher, self.layers, self.forward, s, self.optimizer)
            self._steps(batches, s.logit_steps, joint.step)
        self.report.converted = self.evaluation.converted(self.model, self.teacher)
        self.stage = "done"
        self._save(batches)
        if self.folder is not None:
            self.report.save(self.folder / "report.json")

    def _steps(self, batches: Batches, total: int, step: Step) -> None:
        report, stage = self.report, self.stage
        done = report.steps[stage]
        with Progress(f"convert {stage}", total, done, self.progress and total > 0) as bar:
            while report.steps[stage] < total:
                began = time.perf_counter()
                value, tokens = step(batches.next())
                if not math.isfinite(value):
                    raise ArithmeticError(
                        f"step {report.steps[stage]} of the stage {stage!r} gave {value}: a lower "
                        f"{'lr' if stage == 'layers' else 'logit_lr'} may help"
                    )
                report.steps[stage] += 1
                report.history[stage].append(value)
                report.tokens[stage] += tokens
                report.tokens["total"] += tokens
                report.seconds[stage] += time.perf_counter() - began
                report.batches = batches.taken
                bar.step(f"{'error' if stage == 'layers' else 'objective'} {value:.4f}")
                if report.steps[stage] % self.settings.save_every == 0 and report.steps[stage] < total:
                    self._save(batches)

    def _optimizer(self, module: nn.Module, lr: float, steps: int, clip: float | None) -> Optimizer:
        return Optimizer(module, lr, self.settings.weight_decay, steps, clip)

    def _identity(self) -> dict[str, Any]:
        layers = [layer.name for layer in self.all]
        settings = {name: value for name, value in self.report.settings.items() if name != "save_every"}
        return {**settings, "layers": layers, "model": saved.fingerprint(self.model)}

    def _save(self, batches: Batches) -> None:
        if self.folder is None:
            return
        assert self.optimizer is not None
        trained = self.news if self.stage == "layers" else self.model
        state = {
            "identity": self.identity,
            "stage": self.stage,
            "weights": trained.state_dict(),
            "optimizer": self.optimizer.state(),
            "batches": {"taken": batches.taken, "mark": batches.mark},
            "random": saved.random_state(),
            "report": self.report.to_dict(),
        }
        saved.save(self.folder, state)

    def _resume(self, state: dict[str, Any], batches: Batches) -> None:
        s = self.settings
        self.report = ConversionReport.from_dict(state["report"])
        self.stage = state["stage"]
        if self.stage == "layers":
            self.news.load_state_dict(state["weights"])
            self.optimizer = self._optimizer(self.news, s.lr, s.layer_steps, None)
        else:
            self._drop([layer for layer in self.layers if not self.report.layers[layer.index].converted])
            self._swap()
            self.model.load_state_dict(state["weights"])
            self.optimizer = self._optimizer(self.model, s.logit_lr, s.logit_steps, CLIP)
        self.optimizer.restore(state["optimizer"])
        if self.stage != "done":
            batches.skip_to(**state["batches"])
        saved.set_random_state(state["random"])
