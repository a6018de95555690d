"""A trained transformer turned into Hyena."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hyena
from hyena.conversion.batches import Batches, check_source, length_of, moved
from hyena.conversion.outputs import Forward
from hyena.conversion.report import ConversionReport
from hyena.conversion.run import Run
from hyena.conversion.settings import Settings
from hyena.integrations.replace import plan_replacement


def convert(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layer_steps: int | None = None,
    logit_steps: int | None = None,
    keep: Sequence[int] = (),
    keep_worst: int = 0,
    start: str | None = None,
    start_batches: int = 4,
    evaluate: int | Iterable[Any] = 4,
    lr: float = 1e-3,
    logit_lr: float | None = None,
    weight_decay: float = 0.0,
    temperature: float = 1.0,
    label_weight: float = 0.5,
    objective: str = "kl",
    forward: Forward | None = None,
    checkpoint: str | Path | None = None,
    save_every: int = 100,
    progress: bool = True,
    **replacement: Any,
) -> ConversionReport:
    """Turns a trained model's attention into Hyena, in place, and teaches Hyena what the attention computed.

    ``report = convert(model, batches, layer_steps=100, logit_steps=300)``

    Two stages, one batch a step. In the first every new layer is trained on the inputs that the model gives the
    attention there, to give its outputs; in the second all weights that require gradients are trained together, to
    give the outputs of the model as it was (``T² KL``, arXiv 1503.02531) and the true labels. Padded positions do not
    count in either. Where the attention shows how it makes its values, a :class:`hyena.HyenaOperator` starts from
    their projections, with filters fitted to the mean diagonals of the attention maps.

    A batch is a tensor, ``model(batch)``; a pair ``(inputs, labels)``, ``model(inputs)``; or a dict of the model's
    keywords, ``model(**batch)``. The loss of true labels is the model's own if it returns one (``transformers``, whose
    causal models shift labels themselves; nanoGPT, given ``targets``), else the cross-entropy of labels that stand
    where the logits that predict them do, -100 for none. In a dict ``attention_mask`` or ``mask`` (1 or True = keep)
    and ``src_key_padding_mask`` or ``key_padding_mask`` (True = ignore) say which logits count.

    The whole works in the model's own mode: call ``model.train()`` before for dropout in the second stage; the first
    and all evaluations have none. A frozen copy of the model is held in the second stage.

    Args:
        model: any model whose attention :func:`hyena.replace_attention` knows. After an error it is as it was.
        batches: an iterable of batches, of which one pass is made. With ``checkpoint`` it must give the same ones every
            time it is made.
        layer_steps, logit_steps: steps of the two stages. If missing, all batches are used, a quarter of them in the
            first stage; then ``len(batches)`` must be known.
        keep: indices of layers that stay attention, in the order of ``replace_attention``'s report, from 0.
        keep_worst: how many layers stay attention besides: after the first stage those which alone, the others being
            attention, change the model's outputs most.
        start: "attention" for values, output projections and filters as above; "filters" for the filters alone;
            "random" as :func:`hyena.replace_attention` leaves them. None for "attention" where that is possible, which
            the report says.
        start_batches: of the training batches, those whose attention maps are averaged; all, where there are fewer.
        evaluate: how many of the first batches are held out for the report; or an iterable of such batches.
        lr, logit_lr: learning rates of AdamW in the two stages, ``lr`` in both if missing; see
            :func:`hyena.param_groups`. They rise over a twentieth of the steps and fall to a tenth along a cosine.
        weight_decay: in both.
        temperature: T of the second stage.
        label_weight: w of the second stage's ``(1 - w) T² KL + w (loss of labels)``.
        objective: "kl", or "mse" for models whose outputs are no logits: their relative squared error.
        forward: ``forward(model, batch)`` for batches or outputs of another kind: returns logits ``(…, V)``, or
            ``(logits, loss)``. All logits that it returns count.
        checkpoint: a folder, from whose state a conversion that was stopped goes on, to the same bits, when it is
            called again with the same model, batches and arguments; ``report.json`` is there in the end.
        save_every: steps between two states.
        progress: shows progress, with bars where tqdm is installed.
        **replacement: of :func:`hyena.replace_attention`: ``l_max``, ``causal``, ``multi_head``, ``mixer``, and the
            mixer's own (``filter=partial(HyenaFilter, width=32)``).

    Returns:
        Errors of the layers, losses before and after, tokens used; to print and to save.

    Raises:
        TypeError: unknown keywords, arguments of another type.
        ValueError: nothing to convert; arguments out of range; batches that are too few, too long, or without the
            labels that ``label_weight`` needs; a state in ``checkpoint`` of another conversion.
        ArithmeticError: a loss that is not finite.
    """
    if layer_steps is None or logit_steps is None:
        layer_steps, logit_steps = _shared_out(batches, layer_steps, logit_steps, evaluate)
    if not isinstance(keep, (list, tuple, range)):
        raise TypeError(f"keep must be indices of layers, got {keep!r}")
    settings = Settings(
        layer_steps=layer_steps,
        logit_steps=logit_steps,
        keep=tuple(keep),
        keep_worst=keep_worst,
        start=start,
        evaluate=evaluate if isinstance(evaluate, int) else 0,
        start_batches=start_batches,
        lr=lr,
        logit_lr=lr if logit_lr is None else logit_lr,
        weight_decay=weight_decay,
        temperature=temperature,
        label_weight=label_weight,
        objective=objective,
        save_every=save_every,
    )
    run = Run(
        model,
        plan_replacement(model, **replacement),
        settings,
        forward=forward,
        replacement=replacement,
        folder=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    device = next(model.parameters()).device
    run.report.device = str(device)
    run.report.versions = {"torch": str(torch.__version__), "hyena": hyena.__version__}
    held_out = settings.evaluate
    words = f"{held_out} held out to evaluate, {layer_steps} to teach layers and {logit_steps} to train them together"
    source = Batches(batches, held_out + layer_steps + logit_steps, words, device, run.longest)
    given = source.take(held_out) if isinstance(evaluate, int) else [moved(batch, device) for batch in evaluate]
    if not given:
        raise ValueError("evaluate has no batches: pass how many to hold out, at least 1, or batches")
    return run.run(source, given)


def _shared_out(
    batches: Iterable[Any], layer_steps: int | None, logit_steps: int | None, evaluate: int | Iterable[Any]
) -> tuple[int, int]:
    """Steps for all batches: a quarter for the layers, or what the caller leaves.

    Raises:
        TypeError: one batch in the place of several.
        ValueError: batches whose number is not known, or that leave none to train with, with what would do.
    """
    check_source(batches)
    count = length_of(batches)
    if count is None:
        raise ValueError(
            f"how many batches there are is not known of a {type(batches).__name__}: pass layer_steps= and logit_steps="
        )
    asked = {"layer_steps": layer_steps, "logit_steps": logit_steps}
    given = {name: n for name, n in asked.items() if n is not None}
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in given.values()):
        return given.get("layer_steps", 0), given.get("logit_steps", 0)  # refused by name with the other settings
    held_out = max(0, evaluate) if isinstance(evaluate, int) else 0
    least = max(1, sum(given.values()))
    if count < held_out + least:
        wanted = [f"evaluate={held_out} held out"] if isinstance(evaluate, int) else []
        wanted += [f"{name}={n}" for name, n in given.items()] or ["at least 1 to train with"]
        fewer = f", or evaluate={count - least} or less" if count > least and held_out else ""
        raise ValueError(
            f"batches gave {count} and {held_out + least} are needed ({', '.join(wanted)}): pass more{fewer}"
        )
    count -= held_out
    if layer_steps is None and logit_steps is None:
        layer_steps = count // 4
    if layer_steps is None:
        assert logit_steps is not None
        layer_steps = count - logit_steps
    if logit_steps is None:
        logit_steps = count - layer_steps
    return layer_steps, logit_steps
