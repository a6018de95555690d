"""Swapping the attention of a whole model for Hyena."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hyena.integrations import adapters
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.sites import AttentionSite, CannotReplaceError, MixerFactory, find_builder
from hyena.mixers import HyenaOperator, Mixer


@dataclass(frozen=True)
class Replaced:
    """A module that was swapped.

    Attributes:
        name: where it stands in the model.
        old, new: class names.
        l_max, causal: of the mixer in the new module; None if it has none.
    """

    name: str
    old: str
    new: str
    l_max: int | None
    causal: bool | None

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}(l_max={self.l_max}, causal={self.causal})"


@dataclass(frozen=True)
class Kept:
    """Attention that stays.

    Attributes:
        name: where it stands in the model.
        kind: its class name.
        reason: why it stays.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind} stays: {self.reason}"


@dataclass(frozen=True)
class ReplacementReport:
    """What :func:`replace_attention` did; ``print`` it. Its length is the number of modules that were swapped."""

    replaced: list[Replaced] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.replaced)

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, kept {len(self.kept)}"]
        return "\n".join(lines + [f"  {entry}" for entry in (*self.replaced, *self.kept)])


def replace_attention(
    model: nn.Module,
    *,
    l_max: int | None = None,
    causal: bool | None = None,
    multi_head: bool = False,
    where: Callable[[str, nn.Module], bool] | None = None,
    mixer: MixerFactory = HyenaOperator,
    **options: Any,
) -> ReplacementReport:
    """Swaps the self-attention of a model for Hyena, in place.

    Known are ``nn.MultiheadAttention`` (so torchvision's ViT); the self-attention of ``transformers`` models, as far as
    it has query, key and value projections and a ``forward`` whose arguments are known; timm's ViT; nanoGPT's
    ``CausalSelfAttention`` and modules made like it; and what :func:`hyena.register_attention` was given. The new
    layers have new weights that require gradients, on the device, in the dtype and in the mode (training or not) of the
    old ones; the dropout of attention weights becomes the mixer's. Everything is built before anything is swapped:
    after an error the model is as it was.

    In models of ``transformers`` the padding of ``attention_mask`` reaches every layer, and a padded row gets what it
    gets alone. ``generate`` steps from states in the cache and gives the text of ``use_cache=False``.

    Args:
        model: the model. Optimizers and compiled versions must be made after this.
        l_max: the longest input. By default what the model's config says (``n_positions``, ``max_position_embeddings``,
            ``block_size``, patches of an image), where it has one.
        causal: whether outputs may not see later inputs. By default as each module says of itself: GPT-2, nanoGPT and
            the ``self_attn`` of ``nn.TransformerDecoderLayer`` are causal, ViT is not, BERT as configured; any other
            ``nn.MultiheadAttention`` does not say, is taken as not causal, and raises when it is given a causal mask.
        multi_head: makes it multi-head Hyena with as many heads as the attention had.
        where: which of the modules to swap, a function of name and module, for models that keep some attention.
        mixer: what to put in, the class of a :class:`hyena.mixers.Mixer` or a ``functools.partial`` of one. Called as
            ``mixer(d_model, l_max, **keywords)`` with those of ``causal``, ``dropout``, ``bias``, ``num_heads``,
            ``device`` and ``dtype`` that it takes, as the attention had them.
        **options: more keywords of the mixer. A module among them is copied for each place.

    Returns:
        What was replaced, and which attention stays and why.

    Raises:
        ValueError: nothing was replaced (the message lists what was seen), ``l_max`` is not known, or settings that
            Hyena cannot honour.
        TypeError: unknown keywords.
    """
    plan = plan_replacement(
        model, l_max=l_max, causal=causal, multi_head=multi_head, where=where, mixer=mixer, **options
    )
    return plan.carry_out(model)


@dataclass(frozen=True)
class ReplacementPlan:
    """A replacement that is built and not yet made.

    Attributes:
        swaps: where attention stands, and what takes its place; several places may share one.
        staying: known attention that stays.
        kept: the same, with reasons.
    """

    swaps: list[tuple[AttentionSite, nn.Module]]
    staying: list[AttentionSite]
    kept: list[Kept]

    def without(self, modules: Collection[nn.Module], reason: str) -> ReplacementPlan:
        """The plan with some of the attention staying, for ``reason``.

        Args:
            modules: what would have taken its place.
            reason: for the report.
        """
        dropped = {id(module) for module in modules}
        swaps = [(site, new) for site, new in self.swaps if id(new) not in dropped]
        more = [site for site, new in self.swaps if id(new) in dropped]
        kept = [Kept(site.name, type(site.module).__name__, reason) for site in more]
        return ReplacementPlan(swaps, self.staying + more, self.kept + kept)

    def check(self) -> None:
        """Raises ValueError where attention that stays would not work beside what is replaced."""
        adapters.check(self.staying, [site for site, _ in self.swaps])

    def carry_out(self, model: nn.Module) -> ReplacementReport:
        """Swaps the modules of the model."""
        self.check()
        for site, new in self.swaps:
            setattr(site.parents[-1], site.name.rpartition(".")[2], new)
        adapters.finish([site for site, _ in self.swaps])
        described = [_describe(site, new) for site, new in self.swaps]
        return ReplacementReport(described, self.kept + _unknown(model, self.kept))


def plan_replacement(
    model: nn.Module,
    *,
    l_max: int | None = None,
    causal: bool | None = None,
    multi_head: bool = False,
    where: Callable[[str, nn.Module], bool] | None = None,
    mixer: MixerFactory = HyenaOperator,
    **options: Any,
) -> ReplacementPlan:
    """Builds what :func:`replace_attention` puts in, and leaves the model as it is; arguments and errors are its."""
    if find_builder(model) is not None:
        raise ValueError(
            f"the model is itself a {type(model).__name__}, and nothing around it can be given another module: replace "
            "it where it is used"
        )
    if isinstance(model, (HyenaAttention, Mixer)):
        raise ValueError(f"the model is itself a {type(model).__name__} already")
    built: dict[int, nn.Module] = {}
    swaps: list[tuple[AttentionSite, nn.Module]] = []
    staying: list[AttentionSite] = []
    kept: list[Kept] = []
    for name, parents, module in _walk(model, "", ()):
        builder = find_builder(module)
        if builder is None:
            continue
        site = AttentionSite(name, module, parents, l_max, causal, multi_head, options, mixer)
        try:
            if where is not None and not where(name, module):
                raise CannotReplaceError("where= leaves it")
            if id(module) not in built:  # a module that stands in several places gives one, in all of them
                built[id(module)] = builder(site).train(module.training)
            swaps.append((site, built[id(module)]))
        except CannotReplaceError as reason:
            staying.append(site)
            kept.append(Kept(name, type(module).__name__, str(reason)))
    if not swaps:
        raise ValueError(_nothing_message(model, kept))
    return ReplacementPlan(swaps, staying, kept)


def _walk(
    module: nn.Module, name: str, parents: tuple[nn.Module, ...]
) -> Iterator[tuple[str, tuple[nn.Module, ...], nn.Module]]:
    """Every module under ``module`` with the ones around it; not what is inside known attention or Hyena."""
    for child_name, child in module._modules.items():
        if child is None:
            continue
        full, around = f"{name}.{child_name}" if name else child_name, (*parents, module)
        yield full, around, child
        if find_builder(child) is None and not isinstance(child, Mixer):
            yield from _walk(child, full, around)


def _describe(site: AttentionSite, new: nn.Module) -> Replaced:
    operator = next((m for m in new.modules() if isinstance(m, Mixer)), None)
    l_max, causal = (None, None) if operator is None else (operator.l_max, operator.causal)
    return Replaced(site.name, type(site.module).__name__, type(new).__name__, l_max, causal)


def _unknown(model: nn.Module, kept: list[Kept]) -> list[Kept]:
    """Modules named like attention that no builder knows; of nested ones the innermost."""
    reported = [entry.name for entry in kept]
    found: list[Kept] = []
    for name, _, module in reversed(list(_walk(model, "", ()))):  # what is inside comes before what is around it
        if "attention" not in type(module).__name__.lower() or find_builder(module) is not None:
            continue
        around = any(other.startswith(name + ".") for other in reported)
        if not around and not any(isinstance(m, Mixer) for m in module.modules()):
            found.append(Kept(name, type(module).__name__, "not known; teach it with hyena.register_attention"))
            reported.append(name)
    return found[::-1]


def _nothing_message(model: nn.Module, kept: list[Kept]) -> str:
    mixers = Counter(type(m).__name__ for m in model.modules() if isinstance(m, Mixer))
    seen = Counter(type(m).__name__ for m in model.modules())
    lines = [f"found nothing to replace in {type(model).__name__}"]
    if mixers:
        lines[0] += f", which has {', '.join(f'{count} {kind}' for kind, count in mixers.items())} already"
    lines += [f"  {entry}" for entry in kept + _unknown(model, kept)]
    lines.append("seen: " + ", ".join(f"{kind} x {count}" for kind, count in seen.most_common()))
    return "\n".join(lines)
