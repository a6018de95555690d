"""Parameter groups for optimizers: learning rates and weight decay by what a parameter does."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hyena.conv import LongConv, LongConvND
from hyena.filters import LearnedEncoding
from hyena.filters.base import FilterBase

# The most that poles and step sizes of state spaces are trained at: the rate that S4, S4D, DSS and H3 are trained with,
# without weight decay (arXiv 2111.00396, appendix D.2; 2206.11893, section 5).
DYNAMICS_LR = 1e-3

# The released code's learning rate for trained positions (lr_pos_emb of its HyenaFilter).
ENCODING_LR = 1e-5

_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm
)


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    *,
    filter_lr: float | None = None,
    dynamics_lr: float | None = None,
    encoding_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for any ``torch.optim`` optimizer: ``AdamW(param_groups(model, lr=6e-4))``.

    Parameters are told apart by the modules that hold them, so deep copies (EMA), compiled, wrapped and adapted models
    get the same groups. Every parameter that requires a gradient is in one group, shared ones too; frozen ones are in
    none.

    ==============  ===============  ================  ======================================================
    name            learning rate    weight decay      what
    ==============  ===============  ================  ======================================================
    ``decay``       ``lr``           ``weight_decay``  matrices and other weights, the short convolution's too
    ``no_decay``    ``lr``           0                 biases, norms, embeddings, anything of one dimension, and what
                                                       a module names in its class's ``no_decay``
    ``filters``     ``filter_lr``    0                 what is inside a long filter, of this library or one's own: FFN,
                                                       sine frequency, window, taps, poles
    ``dynamics``    ``dynamics_lr``  0                 what a class names in ``dynamics``, as filters and
                                                       :class:`hyena.mixers.S5` do: poles and step sizes
    ``encodings``   ``encoding_lr``  0                 trained positions inside a filter (:class:`LearnedEncoding`)
    ==============  ===============  ================  ======================================================

    No decay of filters, and a rate of 1e-5 for their positions, are the released code's defaults (arXiv 2302.10866;
    ``wd`` and ``lr_pos_emb`` in HazyResearch/safari); every released experiment trains the filters at the model's rate.
    No decay of biases, norms and embeddings is what its image models ask for; its language models decay them. An output
    layer that shares the embedding's weight is treated as the embedding.

    A layer of one's own keeps a matrix from decaying by naming it: ``no_decay = ("mixing",)`` in its class body, for a
    parameter, or a submodule and all in it.

    Args:
        model: any module, whole or wrapped.
        lr: of the ``decay`` and ``no_decay`` groups; a number, or a tensor where the optimizer takes one.
        weight_decay: of the ``decay`` group. The released language models are trained with 0.1, the default.
        filter_lr: of the ``filters`` group; ``lr`` if missing.
        dynamics_lr: of the ``dynamics`` group; if missing, the rate of the ``filters``, but at most 1e-3.
        encoding_lr: of the ``encodings`` group; 1e-5 if missing.

    Returns:
        The groups that have parameters, each with ``params``, ``lr``, ``weight_decay`` and its ``name``, in the table's
        order.

    Warns:
        UserWarning: a group that the caller gave a rate has no parameters: there is nothing to decay, or nothing that
            does not, or no filter, state space or trained position although ``filter_lr``, ``dynamics_lr`` or
            ``encoding_lr`` was given.

    Raises:
        TypeError: something else than numbers.
        ValueError: a number that is negative or not finite, or a model without any trainable parameter.
    """
    given = {"lr": lr, "weight_decay": weight_decay, "filter_lr": filter_lr}
    given |= {"dynamics_lr": dynamics_lr, "encoding_lr": encoding_lr}
    for name, value in given.items():
        if value is not None:
            _check_number(name, value)
    of_filters = lr if filter_lr is None else filter_lr
    rates = {
        "decay": (lr, weight_decay),
        "no_decay": (lr, 0.0),
        "filters": (of_filters, 0.0),
        "dynamics": (_at_most(of_filters, DYNAMICS_LR) if dynamics_lr is None else dynamics_lr, 0.0),
        "encodings": (ENCODING_LR if encoding_lr is None else encoding_lr, 0.0),
    }

    params: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for p, group in _assigned(model):
        params[group].append(p)
    if not any(params.values()):
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
    asked = {"filters": filter_lr, "dynamics": dynamics_lr, "encodings": encoding_lr}
    _warn_of_empty(params, {name for name in rates if asked.get(name, lr) is not None})
    return [
        {"params": params[name], "lr": rate, "weight_decay": decay, "name": name}
        for name, (rate, decay) in rates.items()
        if params[name]
    ]


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1)
    if isinstance(value, bool) or not is_number:
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def _assigned(model: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """Every trainable parameter once, in the model's order, with its group.

    A parameter with several places (tied weights) gets the group of the most particular of them.
    """
    particular: dict[int, str] = {}
    for module in model.modules():
        for group, p in _claims(module):
            if _RANK[group] > _RANK[particular.get(id(p), "decay")]:
                particular[id(p)] = group
    for p in model.parameters():
        if p.requires_grad:
            yield p, particular.get(id(p), "decay")


# Which group wins where several claim a parameter.
_RANK = {"decay": 0, "no_decay": 1, "filters": 2, "dynamics": 3, "encodings": 4}


def _claims(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What a module says about the parameters in it."""
    if isinstance(module, LearnedEncoding):
        yield from (("encodings", p) for p in module.parameters())
    if isinstance(module, FilterBase):
        yield from (("filters", p) for p in module.parameters())
    dynamics = module.dynamics if isinstance(module, FilterBase) else getattr(type(module), "dynamics", ())
    for name in dynamics if isinstance(dynamics, tuple) else ():  # something else may have this name
        p = getattr(module, name, None)
        if isinstance(p, nn.Parameter):  # else it is computed from another one, by a parametrisation
            yield "dynamics", p
    if isinstance(module, (LongConv, LongConvND)) and module.filter is not None:
        # Whatever a user put in a filter's place is one.
        yield from (("filters", p) for p in module.filter.parameters())
    for name in getattr(type(module), "no_decay", ()):
        part = getattr(module, name, None)
        if isinstance(part, nn.Module):
            yield from (("no_decay", p) for p in part.parameters())
        elif isinstance(part, nn.Parameter):
            yield "no_decay", part
    undecayed = isinstance(module, (nn.Embedding, nn.EmbeddingBag, *_NORMS))
    for name, p in module.named_parameters(recurse=False):
        if undecayed or p.dim() < 2 or name.endswith("bias"):
            yield "no_decay", p


def _at_most(rate: Any, most: float) -> Any:
    return rate.clamp(max=most) if isinstance(rate, Tensor) else min(rate, most)


def _warn_of_empty(params: dict[str, list[nn.Parameter]], asked: set[str]) -> None:
    """Warns of groups that are empty although a rate was asked for them."""
    reasons = {
        "decay": "every trainable parameter is a bias, a norm, an embedding or part of a filter",
        "no_decay": "there are no trainable biases, norms or embeddings",
        "filters": "the model has no trainable Hyena filter, so filter_lr has no effect",
        "dynamics": "nothing is a state space with poles and step sizes, so dynamics_lr has no effect",
        "encodings": "no filter has trained positions (a LearnedEncoding), so encoding_lr has no effect",
    }
    for name, reason in reasons.items():
        if not params[name] and name in asked:
            warnings.warn(f"the parameter group {name!r} is empty: {reason}", stacklevel=3)
