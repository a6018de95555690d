"""Derivatives of ops: backward, forward mode, and what ``torch.func`` asks (vmap, jvp, any nesting of them).

``torch.library.register_autograd`` knows the backward pass alone: its forward mode is zero, and ``torch.func`` cannot
look into it. An op is registered here under two dispatch keys instead. ``Autograd`` is plain autograd and forward mode
(``torch.autograd.forward_ad``); ``FuncTorchDynamicLayerFrontMode`` is where every op goes while a transform of
``torch.func`` is active, before any of them has unwrapped the arguments.

An op is differentiated in one of two ways:

- :class:`Rule`: by calls of ops. Most ops here are linear in each of a few groups of arguments, so that their
  derivative in every direction is the op itself: :class:`Multilinear`.
- by ``plain``, the same function in operations that torch, or a rule, can differentiate. It takes the op's place under
  transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call
from torch.autograd import forward_ad

Arguments = Sequence[Any]
Named = dict[str, Any]
Backward = Callable[[Arguments, Sequence["Tensor | None"], Sequence[bool]], Sequence["Tensor | None"]]
"""From arguments, gradients of the outputs and which gradients are asked for, to gradients of the arguments."""


class Rule(NamedTuple):
    """How an op is differentiated by calls of ops.

    Attributes:
        backward: see :data:`Backward`.
        jvp: from arguments and their tangents (None: zero) to the tangent of each output.
        rows: positions of the arguments whose first dimension is a batch, to which vmap adds its own dimension. Other
            arguments that are mapped over are taken one by one.
        packed: position of ``cu_seqlens``, where packed rows are the batch.
    """

    backward: Backward
    jvp: Callable[[Arguments, Sequence[Tensor | None]], Any]
    rows: tuple[int, ...] = ()
    packed: int | None = None


def _make_function(
    op: Any, backward: Backward | None, rule: Rule | None, *, apart: bool
) -> type[torch.autograd.Function]:
    """The ``autograd.Function`` of an op; ``apart``: with a ``setup_context``, for transforms."""
    name = op._schema.name

    def forward(*args: Any) -> Any:
        return call_below_autograd(op, args)

    def setup_context(ctx: Any, inputs: Arguments, output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.is_tensor = [isinstance(a, Tensor) for a in inputs]
        ctx.others = [None if t else a for a, t in zip(inputs, ctx.is_tensor, strict=True)]
        tensors = [a for a, t in zip(inputs, ctx.is_tensor, strict=True) if t]
        ctx.save_for_backward(*tensors)
        if rule is not None:
            ctx.save_for_forward(*tensors)

    def saved(ctx: Any) -> list[Any]:
        tensors = iter(ctx.saved_tensors)
        return [next(tensors) if t else a for t, a in zip(ctx.is_tensor, ctx.others, strict=True)]

    def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = saved(ctx)
        if all(g is None for g in grads):
            return (None,) * len(inputs)
        assert backward is not None
        found = backward(inputs, grads, ctx.needs_input_grad)
        return tuple(g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=True))

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        assert rule is not None
        return rule.jvp(saved(ctx), tangents)

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        assert rule is not None
        return _map_batch(op, rule, info.batch_size, in_dims, args)

    def forward_and_save(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    # Transforms need the two apart; Function.apply then looks at signatures, 10 µs a call.
    first = {"forward": forward, "setup_context": setup_context} if apart else {"forward": forward_and_save}
    methods: dict[str, Callable[..., Any]] = {**first, "backward": differentiate}
    if rule is not None:
        methods |= {"jvp": jvp, "vmap": vmap}
    bound = {key: staticmethod(method) for key, method in methods.items()}
    return type(name.replace("::", "_"), (torch.autograd.Function,), bound)


def _map_batch(op: Any, rule: Rule, size: int, in_dims: tuple[int | None, ...], args: Arguments) -> tuple[Any, Any]:
    """``op`` over a mapped dimension: the output, and where the dimension is in it."""
    mapped = {i for i, at in enumerate(in_dims) if at is not None}
    packed = rule.packed is not None and args[rule.packed] is not None
    if mapped <= set(rule.rows) and not packed:
        folded = list(args)
        for i in rule.rows:
            if args[i] is not None:
                at = in_dims[i]
                t = args[i].expand(size, *args[i].shape) if at is None else args[i].movedim(at, 0)
                folded[i] = t.flatten(0, 1)
        return op(*folded).unflatten(0, (size, -1)), 0
    each = [
        op(*(a if at is None else a.select(at, i) for a, at in zip(args, in_dims, strict=True))) for i in range(size)
    ]
    if isinstance(each[0], Tensor):
        return torch.stack(each), 0
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0,) * len(each[0])


def make_autograd_kernel(
    op: Any, rule: Rule | None, backward: Backward | None, plain: Callable[..., Any] | None
) -> Callable[..., Any]:
    """What the op does under ``Autograd``."""
    backward = backward if rule is None else rule.backward
    function = _make_function(op, backward, rule, apart=False)
    changed = [i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]

    def kernel(*args: Any) -> Any:
        forward_mode = forward_ad._current_level >= 0 and _has_tangent(args)
        if forward_mode and plain is not None:
            return plain(*args)
        if forward_mode or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            if backward is None:
                raise RuntimeError(f"{op._schema.name} has no gradient: call it under torch.no_grad()")
            return function.apply(*args)
        found = call_below_autograd(op, args)
        if changed:
            note_changes([args[i] for i in changed])
        return found

    return kernel


def call_below_autograd(op: Any, args: Arguments) -> Any:
    """``op(*args)`` past autograd, where what a kernel refuses is a ValueError under every torch.

    Torch 2.15 makes a RuntimeError of whatever a kernel of another library throws.
    """
    try:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    except RuntimeError as error:
        if str(error).startswith("hyena: "):
            raise ValueError(str(error)) from None
        raise


def note_changes(tensors: Sequence[Tensor]) -> None:
    """Tells autograd of tensors that were changed below it: a graph that needs their former values must raise."""
    torch.autograd.graph.increment_version(tensors)


def make_transform_kernel(op: Any, rule: Rule | None, plain: Callable[..., Any] | None) -> Callable[..., Any]:
    """What the op does while transforms of ``torch.func`` are active."""
    function = None if rule is None else _make_function(op, rule.backward, rule, apart=True)

    def kernel(*args: Any) -> Any:
        _check_transforms(op)
        if function is not None:
            return custom_function_call(function, *args)
        assert plain is not None
        return plain(*args)

    return kernel


def _check_transforms(op: Any) -> None:
    """Refuses what torch has no rule for, and what it gets wrong without a word: forward twice over reverse."""
    kinds = [layer.key() for layer in torch._C._functorch.get_interpreter_stack()]
    transform = torch._C._functorch.TransformType
    if transform.Functionalize in kinds:
        raise RuntimeError(f"{op._schema.name} cannot be traced by torch.func.functionalize; torch.compile can")
    if kinds.count(transform.Jvp) > 1 and transform.Grad in kinds:
        raise RuntimeError(
            f"{op._schema.name} has no derivative that goes forward twice over a backward pass (jacfwd of hessian): "
            "take torch.func.jacrev in place of one of the jacfwd"
        )


def _has_tangent(args: Arguments) -> bool:
    return any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args)


def backward_through(plain: Callable[..., Any]) -> Backward:
    """The backward pass by autograd through ``plain``, computed again; of any order if ``plain`` has them."""

    def backward(inputs: Arguments, grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = list(inputs)
            for i, need in enumerate(needs):
                if need:
                    leaves[i] = inputs[i].view_as(inputs[i]) if again else inputs[i].detach().requires_grad_()
            outputs = plain(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
            wanted = [i for i, need in enumerate(needs) if need]
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [leaves[i] for i in wanted],
                [g for _, g in pairs],
                allow_unused=True,
                create_graph=again,
            )
        result: list[Tensor | None] = [None] * len(inputs)
        for i, g in zip(wanted, found, strict=True):
            result[i] = g
        return result

    return backward


class Group(NamedTuple):
    """Arguments in which an op is linear together, the others being held.

    Attributes:
        names: the arguments.
        without: optional arguments that are added to the rest, and must be left out.
    """

    names: tuple[str, ...]
    without: tuple[str, ...] = ()


class Multilinear:
    """Rules of an op that is linear in each of its groups of arguments, and of its backward op.

    For an op ``f`` with groups ``g_1, g_2, …`` the derivative in direction ``t`` is ``sum_i f(g with t_i for g_i)``.
    Its backward op ``b(dy, g) = (b_1, b_2, …)`` is linear in ``dy`` and in each group but the one that ``b_i`` is the
    gradient of. With cotangents ``a`` of its outputs, ``sum_i <a_i, b_i(dy, g)> = sum_i <dy, f(g with a_i for g_i)>``,
    whose gradients are ``f`` and ``b`` again. So derivatives of every order are calls of the two.

    Args:
        names: the arguments of ``hyena::<name>``.
        groups: its groups.
        gradients: which argument each output of ``hyena::<name>_backward`` is the gradient of.
        optional: arguments that may be None.
        rows: arguments whose first dimension is a batch (see :class:`Rule`).
        backward_names: the arguments of the backward op after ``dy``; those of the op if missing.
        backward_rows: arguments of the backward op with a batch, ``dy`` too, if none of its outputs sums over it.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        groups: Sequence[Group],
        gradients: Sequence[str],
        *,
        optional: Sequence[str] = (),
        rows: Sequence[str] = (),
        backward_names: Sequence[str] | None = None,
        backward_rows: Sequence[str] = (),
    ) -> None:
        self.name, self.names, self.groups, self.gradients = name, list(names), groups, list(gradients)
        self.optional = optional
        self.backward_names = self.names if backward_names is None else list(backward_names)
        packed = self.names.index("cu_seqlens") if "cu_seqlens" in self.names else None
        first = ["dy", *self.backward_names]
        self.rule = Rule(self._backward, self._jvp, tuple(self.names.index(n) for n in rows), packed)
        self.backward_rule = Rule(
            self._backward_of_backward, self._jvp_of_backward, tuple(first.index(n) for n in backward_rows)
        )

    def call(self, a: Named) -> Tensor:
        """The op."""
        return getattr(torch.ops.hyena, self.name)(*(a[n] for n in self.names))

    def call_backward(self, dy: Tensor, a: Named) -> dict[str, Tensor]:
        """The backward op: gradients by the argument's name."""
        found = getattr(torch.ops.hyena, f"{self.name}_backward")(dy, *(a[n] for n in self.backward_names))
        return dict(zip(self.gradients, (found,) if isinstance(found, Tensor) else found, strict=True))

    def _replace(self, a: Named, group: Group, values: Named) -> Named | None:
        """The arguments with ``values`` for a group's, zeros where one is missing; None if all are missing."""
        given = {n: values.get(n) for n in group.names}
        if all(v is None for v in given.values()):
            return None
        for n, v in given.items():
            if v is None and n not in self.optional:
                given[n] = torch.zeros_like(a[n])
        return {**a, **given, **dict.fromkeys(group.without)}

    def _along(self, a: Named, values: Named) -> Tensor | None:
        """The derivative of the op in the direction ``values``."""
        parts = [self._replace(a, group, values) for group in self.groups]
        return _total([self.call(part) for part in parts if part is not None])

    def _others(self, dy: Tensor, a: Named, values: Named, wanted: Sequence[str]) -> dict[str, Tensor | None]:
        """The derivative of the backward op's outputs in the direction ``values``, ``dy`` being held."""
        parts: dict[str, list[Tensor]] = {n: [] for n in self.gradients}
        for group in self.groups:
            reached = [n for n in wanted if n not in (*group.names, *group.without)]
            part = self._replace(a, group, values) if reached else None
            if part is not None:
                found = self.call_backward(dy, part)
                for n in reached:
                    parts[n].append(found[n])
        return {n: _total(each) for n, each in parts.items()}

    def _backward(
        self, inputs: Arguments, grads: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        a, dy = dict(zip(self.names, inputs, strict=True)), grads[0]
        assert dy is not None
        found = self.call_backward(dy, a)
        return [None if a[n] is None else found.get(n) for n in self.names]

    def _jvp(self, inputs: Arguments, tangents: Sequence[Tensor | None]) -> Tensor | None:
        return self._along(dict(zip(self.names, inputs, strict=True)), dict(zip(self.names, tangents, strict=True)))

    def _named(self, inputs: Arguments) -> tuple[Tensor, Named]:
        """``dy``, and the other arguments of the backward op by name."""
        return inputs[0], dict.fromkeys(self.names) | dict(zip(self.backward_names, inputs[1:], strict=True))

    def _backward_of_backward(
        self, inputs: Arguments, grads: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        dy, a = self._named(inputs)
        # An output that stands for the gradient of an argument that is None is empty.
        values = {
            n: g
            for n, g in zip(self.gradients, grads, strict=True)
            if g is not None and (n not in self.backward_names or a[n] is not None)
        }
        wanted = [n for n, need in zip(self.backward_names, needs[1:], strict=True) if need and n in self.gradients]
        found = self._others(dy, a, values, wanted)
        return [self._along(a, values) if needs[0] else None, *(found.get(n) for n in self.backward_names)]

    def _jvp_of_backward(self, inputs: Arguments, tangents: Sequence[Tensor | None]) -> Any:
        dy, a = self._named(inputs)
        values = dict(zip(self.backward_names, tangents[1:], strict=True))
        present = [n for n in self.gradients if n not in self.backward_names or a[n] is not None]
        found = self._others(dy, a, values, present)
        # Also where dy does not move: an output that nothing moves has a tangent of zeros, or torch fails an assertion.
        if tangents[0] is not None or any(found[n] is None for n in self.gradients):
            along = self.call_backward(torch.zeros_like(dy) if tangents[0] is None else tangents[0], a)
            found = {n: _total([t for t in (along[n], found[n]) if t is not None]) for n in self.gradients}
        out = tuple(found[n] for n in self.gradients)
        return out if len(out) > 1 else out[0]


def _total(parts: Sequence[Tensor]) -> Tensor | None:
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total
