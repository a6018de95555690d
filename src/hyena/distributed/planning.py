"""Which mesh for a length and a number of GPUs: :mod:`hyena.distributed.cost` over a machine's rates."""

from __future__ import annotations

import dataclasses

from hyena.distributed.cost import Cost, Mesh, Work, cost

# Forward and backward over forward: of matrix products, of a mixing step by transforms, of flash attention.
TRAINING = {"matmul": 3.0, "mixing": 1.0, "attention": 3.5}


@dataclasses.dataclass(frozen=True)
class Machine:
    """GPUs in nodes, and the rates that they reach.

    Args:
        name: of the kind.
        memory: bytes of a GPU that may be used.
        matmul: FLOPs a second of matrix products.
        attention: FLOPs a second of attention.
        mixing: seconds a position and channel takes in Hyena's mixing step, forward and backward.
        stream: bytes a second from and to the GPU's memory, for norms, activations and sums.
        inside: bytes a second that a GPU sends within its node.
        outside: bytes a second that a GPU sends beyond it.
        node: GPUs of a node.
    """

    name: str
    memory: float
    matmul: float
    attention: float
    mixing: float
    stream: float
    inside: float
    outside: float
    node: int


# bf16. Half of 989 TFLOP/s for products, 0.35 of it for attention; 80 GB less what the allocator loses. The mixing
# step: 96 ms for 768 rows of 1M on an H200 (benchmarks/results/gpu-nvidia-h200.json), times 4.26 / 3.0, the two cards'
# copy rates. Links at 0.8 of 450 GB/s (NVLink 4, one way) and of 400 Gb/s.
H100 = Machine("H100 SXM, NVLink, 400 Gb/s a GPU", 72e9, 495e12, 346e12, 1.7e-10, 3.0e12, 360e9, 40e9, 8)
"""A node of eight H100s with NVLink, and 400 Gb/s for each of them to the others."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A mesh and what it is predicted to take.

    Args:
        mesh: of the axes dp, cp and tp; ranks of tp are neighbours, then those of cp.
        recompute: whether blocks are computed again in the backward pass.
        cost: of each process.
        seconds: of a step, by what they are for: ``matmul``, ``mixing``, ``stream``, ``dp``, ``cp``, ``tp``.
        memory: bytes of each process.
    """

    mesh: Mesh
    recompute: bool
    cost: Cost
    seconds: dict[str, float]
    memory: float

    @property
    def arithmetic(self) -> float:
        """Seconds that a GPU computes."""
        return sum(self.seconds[name] for name in ("matmul", "mixing", "stream"))

    @property
    def communication(self) -> float:
        """Seconds that messages take, if none travels while others compute."""
        return sum(self.seconds[name] for name in ("dp", "cp", "tp"))

    @property
    def step(self) -> float:
        """Seconds of a step, nothing overlapped."""
        return self.arithmetic + self.communication


def plan(work: Work, processes: int, machine: Machine = H100, *, context: str = "all-to-all") -> list[Plan]:
    """Every mesh of powers of two times what is left that fits into memory, the fastest first.

    A step is the sum of its parts, as if nothing overlapped: an upper bound. A layer's all-to-alls and the gathering of
    weights can hide behind arithmetic, the messages of tp cannot.

    Args:
        work: the model and its batch.
        processes: GPUs.
        machine: what they are.
        context: how attention's context is spread, see :class:`Mesh`.

    Raises:
        ValueError: no mesh fits, with the least memory that any needs; or fewer than one process.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    found, least, why = [], float("inf"), ""
    for tp in _divisors(processes, machine.node):
        for cp in _divisors(processes // tp, processes):
            mesh = Mesh(processes // (tp * cp), cp, tp, context)
            for recompute in (False, True):
                try:
                    each = predict(work, mesh, machine, recompute=recompute)
                except ValueError as e:
                    why = str(e)
                    continue
                least = min(least, each.memory)
                if each.memory <= machine.memory:
                    found.append(each)
    if not found:
        if least == float("inf"):
            raise ValueError(f"no mesh of {processes} processes: {why}")
        raise ValueError(
            f"no mesh of {processes} processes fits: {least / 1e9:.0f} GB at least, and {machine.name} has "
            f"{machine.memory / 1e9:.0f}"
        )
    return sorted(found, key=lambda each: each.step)


def predict(work: Work, mesh: Mesh, machine: Machine = H100, *, recompute: bool = False) -> Plan:
    """What one mesh takes.

    Raises:
        ValueError: a mesh that the work cannot be spread over.
    """
    c = cost(work, mesh, recompute=recompute)
    again = 4 / 3 if recompute else 1.0  # of a step's arithmetic
    if work.mixer == "hyena":
        mixing = c.mixed * machine.mixing * TRAINING["mixing"] * (work.order - 1)
    else:
        mixing = c.mixing / machine.attention * TRAINING["attention"]
    streamed = 20 * work.num_layers * work.rows * work.length * work.d_model * 2 / mesh.size
    data = mesh.dp * mesh.cp
    seconds = {
        "matmul": c.matmul * TRAINING["matmul"] / machine.matmul * again,
        "mixing": mixing * again,
        "stream": streamed / machine.stream * again,
        "dp": _ring(c.dp, data, mesh.tp, machine),
        "cp": _all_to_all(c.cp, mesh, machine) if mesh.context == "all-to-all" else _one_ring(c.cp, mesh, machine),
        "tp": c.tp / (machine.inside if mesh.tp <= machine.node else machine.outside),
    }
    return Plan(mesh, recompute, c, seconds, c.weights + c.kept + _working(work, mesh))


def _working(work: Work, mesh: Mesh) -> float:
    """Bytes of one block's backward pass beside what was kept: gradients between the MLP's layers, logits."""
    positions = work.rows * work.length / (mesh.dp * mesh.cp)
    return (
        positions
        * (2 * ((3 if work.gated else 2) * work.inner + 2 * work.parts * work.d_model) + 6 * work.vocab_size)
        / mesh.tp
    )


def _ring(sent: float, size: int, stride: int, machine: Machine) -> float:
    """Gathering and summing in as many rings as a node has members, each of which leaves it by a link of its own."""
    here = max(1, min(size, machine.node // stride))
    return sent / machine.inside if size <= here else max(sent / machine.inside, sent / (machine.outside * here))


def _all_to_all(sent: float, mesh: Mesh, machine: Machine) -> float:
    """Each process sends the same to each other: those of its node by the fast links."""
    here = max(1, min(mesh.cp, machine.node // mesh.tp))
    if mesh.cp == 1:
        return 0.0
    beyond = (mesh.cp - here) / (mesh.cp - 1)
    return max(sent * (1 - beyond) / machine.inside, sent * beyond / machine.outside)


def _one_ring(sent: float, mesh: Mesh, machine: Machine) -> float:
    """All send to their neighbour at once: the slowest link decides."""
    return sent / (machine.inside if mesh.cp * mesh.tp <= machine.node else machine.outside)


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in (1 << i for i in range(number.bit_length())) if n <= most and number % n == 0]
