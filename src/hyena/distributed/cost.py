"""What a training step costs each process: FLOPs, bytes in memory, bytes on the wire, for any mesh.

Dimensions: B rows of a step, L positions of a row, D channels, N order, V vocabulary, P parameters, R processes of an
axis, s bytes a number.
"""

from __future__ import annotations

import dataclasses
import math

from hyena.models.blocks import GATED_MLPS, check_mlp, inner_width

# Of the library's own filter: features of a time, width and hidden layers of its FFN.
FEATURES, FILTER_WIDTH, HIDDEN = 33, 64, 2
CONTEXTS = ("all-to-all", "ring")


@dataclasses.dataclass(frozen=True)
class Work:
    """A step of a :class:`hyena.models.CausalLM` with the library's defaults.

    Args:
        length: L.
        rows: B, over all processes.
        d_model: D.
        num_layers: of blocks.
        mixer: ``"hyena"``, or ``"attention"``: causal, rotary positions, as many heads of keys as of queries.
        order: N.
        num_heads: of attention.
        d_inner: inner width of the MLP; as :class:`hyena.models.Block` has it if missing.
        vocab_size: V.
        mlp: its name, see :class:`hyena.models.Block`.

    Raises:
        ValueError: sizes below 1, another mixer or MLP, an order below 2.
    """

    length: int
    rows: int
    d_model: int = 4096
    num_layers: int = 32
    mixer: str = "hyena"
    order: int = 2
    num_heads: int = 32
    d_inner: int | None = None
    vocab_size: int = 512
    mlp: str = "swiglu"

    def __post_init__(self) -> None:
        """Checks the sizes."""
        for name in ("length", "rows", "d_model", "num_layers", "num_heads", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mixer not in ("hyena", "attention"):
            raise ValueError(f"mixer must be 'hyena' or 'attention', got {self.mixer!r}")
        if self.order < 2:
            raise ValueError(f"order must be at least 2, got {self.order}")
        if self.d_inner is not None and self.d_inner < 1:
            raise ValueError(f"d_inner must be at least 1, got {self.d_inner}")
        check_mlp(self.mlp)

    @property
    def inner(self) -> int:
        """Inner width of the MLP."""
        return inner_width(self.mlp, self.d_model) if self.d_inner is None else self.d_inner

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: a third matrix, and no biases."""
        return self.mlp in GATED_MLPS

    @property
    def parts(self) -> int:
        """How many times D the first projection gives."""
        return self.order + 1 if self.mixer == "hyena" else 3

    @property
    def units(self) -> int:
        """What a mixer can be cut into: channels, or heads."""
        return self.d_model if self.mixer == "hyena" else self.num_heads

    @property
    def layer_parameters(self) -> int:
        """Of one block."""
        D, N, w = self.d_model, self.order, FILTER_WIDTH
        projections = (self.parts + 1) * (D * D + D)
        mlp = 3 * D * self.inner if self.gated else 2 * D * self.inner + D + self.inner
        found = projections + mlp + 4 * D  # two norms
        if self.mixer == "hyena":
            ffn = FEATURES * w + w + HIDDEN * (w * w + w) + w * D * (N - 1) + w  # the last w: frequencies of its sines
            found += (N + 1) * D * 4 + (N - 1) * D + ffn  # short convolution of 3 taps and its bias; biases of the long
        return found

    @property
    def parameters(self) -> int:
        """Of the model, whose output layer has the embedding's weight."""
        return self.num_layers * self.layer_parameters + (self.vocab_size + 2) * self.d_model


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many processes an axis has, and how attention's context is spread.

    Weights are sharded over dp and cp together (``fully_shard``).

    Args:
        dp: that rows are spread over.
        cp: that positions are spread over.
        tp: that channels and inner channels are spread over.
        context: ``"all-to-all"``, as :func:`hyena.distributed.context_parallel`, or ``"ring"``, where keys and values
            go round while queries stay; for attention alone.

    Raises:
        ValueError: an axis below 1, or another context.
    """

    dp: int = 1
    cp: int = 1
    tp: int = 1
    context: str = "all-to-all"

    def __post_init__(self) -> None:
        """Checks the sizes."""
        if min(self.dp, self.cp, self.tp) < 1:
            raise ValueError(f"dp, cp and tp must be at least 1, got {self.dp}, {self.cp} and {self.tp}")
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {self.context!r}")

    @property
    def size(self) -> int:
        """All processes."""
        return self.dp * self.cp * self.tp


@dataclasses.dataclass(frozen=True)
class Cost:
    """What each process has to do in one step, forward and backward together unless it says otherwise.

    Args:
        matmul: FLOPs of matrix products, forward: of projections, MLPs, the output layer and the filters' FFN.
        mixing: FLOPs of transforms, or of attention's products, forward.
        mixed: positions times channels that are mixed, forward.
        weights: bytes of weights, gradients and AdamW's two moments in float32, and of the gathered weights.
        kept: bytes that the backward pass needs from the forward pass.
        dp, cp, tp: bytes that a process sends along an axis; those of dp are of weights and gradients, over dp and cp.
    """

    matmul: float
    mixing: float
    mixed: float
    weights: float
    kept: float
    dp: float
    cp: float
    tp: float


def cost(
    work: Work,
    mesh: Mesh,
    *,
    itemsize: int = 2,
    weight_itemsize: int = 2,
    recompute: bool = False,
    chunks: int = 2,
) -> Cost:
    """Counts a training step. Positions and channels that do not divide are counted as if they did.

    Args:
        work: the model and its batch.
        mesh: how it is spread.
        itemsize: s, bytes of an activation.
        weight_itemsize: bytes of a weight or gradient as it is sent.
        recompute: keep only the blocks' inputs and do the forward pass again.
        chunks: of :func:`hyena.distributed.context_parallel`, each of which runs the filters' FFN.

    Raises:
        ValueError: rows that do not divide by dp; more processes than positions, channels or heads; a ring of Hyena.
    """
    _check(work, mesh)
    w, layers, runs = work, work.num_layers, 2 if recompute else 1
    chunks = chunks if mesh.cp > 1 else 1
    positions = w.rows * w.length / (mesh.dp * mesh.cp)  # of this process
    shared = w.length * w.rows / mesh.dp  # whole rows of its cp group
    mine = w.d_model / (mesh.cp * mesh.tp)  # channels that it mixes
    head = 2 * positions * w.d_model * w.vocab_size / mesh.tp
    dense = 2 * positions * w.d_model * ((w.parts + 1) * w.d_model + (3 if w.gated else 2) * w.inner) / mesh.tp
    there, back = _context_bytes(w, mesh, itemsize)
    along_tp = 4 * positions * w.d_model * itemsize * _share(mesh.tp)  # an all-reduce each for the mixer and the MLP
    ends = positions * (4 * w.d_model + w.vocab_size) * itemsize * _share(mesh.tp)  # of the embedding; of the logits
    block = w.layer_parameters / mesh.tp
    whole = w.parameters / mesh.tp
    data = mesh.dp * mesh.cp
    gathered = layers * block * 2 + (whole - layers * block)  # blocks forward and backward, the rest once
    return Cost(
        matmul=layers * (dense + _filter_flops(w, mine, chunks)) + head,
        mixing=layers * _mixing_flops(w, mesh, mine),
        mixed=layers * shared * mine,
        weights=16 * whole / data + (2 * block + whole - layers * block) * weight_itemsize * (data > 1),
        kept=_kept_bytes(w, mesh, positions, mine, itemsize, recompute, chunks),
        dp=(gathered + whole) * weight_itemsize * _share(data),
        cp=layers * (there * runs + back),
        tp=layers * (along_tp * (runs + 1) + 2 * _shared(w) * weight_itemsize * _share(mesh.tp)) + ends,
    )


def _check(work: Work, mesh: Mesh) -> None:
    if work.rows % mesh.dp:
        raise ValueError(f"{work.rows} rows do not divide by dp={mesh.dp}")
    if mesh.cp > work.length:
        raise ValueError(f"{work.length} positions cannot be spread over cp={mesh.cp} processes")
    if mesh.context == "ring" and work.mixer == "hyena":
        raise ValueError("a convolution does not go round a ring: context='all-to-all'")
    over = mesh.tp if mesh.context == "ring" else mesh.cp * mesh.tp
    if over > work.units:
        kind = "channels" if work.mixer == "hyena" else "heads"
        raise ValueError(f"{work.units} {kind} cannot be spread over cp={mesh.cp} times tp={mesh.tp} processes")


def _context_bytes(w: Work, mesh: Mesh, itemsize: int) -> tuple[float, float]:
    """Along cp for one layer, forward and backward."""
    mine = w.rows * w.length / mesh.dp / mesh.cp * w.d_model / mesh.tp * itemsize
    if mesh.context == "ring":  # keys and values; backward their gradients too
        return 2 * mine * (mesh.cp - 1), 4 * mine * (mesh.cp - 1)
    each = (w.parts + 1) * mine * _share(mesh.cp)
    return each, each


def _filter_flops(w: Work, channels: float, chunks: int) -> float:
    """Of the filters' FFN for all lags: its hidden layers on every process, its last for the channels of this one."""
    if w.mixer != "hyena":
        return 0.0
    hidden = FEATURES * FILTER_WIDTH + HIDDEN * FILTER_WIDTH**2
    return 2 * w.length * (hidden * chunks + FILTER_WIDTH * channels * (w.order - 1))


def _shared(w: Work) -> int:
    """Weights of a block's filters that tp does not split, and whose gradients are summed."""
    ffn = (FEATURES + 1) * FILTER_WIDTH + HIDDEN * (FILTER_WIDTH**2 + FILTER_WIDTH) + FILTER_WIDTH
    return ffn if w.mixer == "hyena" else 0


def _mixing_flops(w: Work, mesh: Mesh, channels: float) -> float:
    """A complex transform of n points as ``5 n log2 n``: two for a row and channel, one for a filter."""
    rows = w.rows / mesh.dp
    if w.mixer == "attention":
        return 2 * rows * w.length**2 * channels  # two products over half of the pairs
    transform = 5 * w.length * math.log2(max(2, w.length))
    return (w.order - 1) * channels * (transform * (2 * rows + 1) + 6 * w.length * rows)


def _kept_bytes(
    w: Work, mesh: Mesh, positions: float, channels: float, itemsize: int, recompute: bool, chunks: int
) -> float:
    """Of one process: norms' inputs and outputs, z, the mixed values, what the MLP has between its layers."""
    D, tp = w.d_model, mesh.tp
    outside = 4 * D + 4  # both norms' inputs and outputs, whole on every process of tp; their statistics
    # Before and after GELU; or the gate before and after SiLU, what it multiplies, and the product.
    inside = (w.parts * D + D + (4 if w.gated else 2) * w.inner) / tp
    block = positions * (outside + inside)
    if w.mixer == "hyena":  # taps and a complex spectrum; the FFN's features and its weights, side by side
        block += w.length * (w.order - 1) * (3 * channels)
        block += chunks * (w.length * (FEATURES + 1) + HIDDEN * FILTER_WIDTH**2)
    else:  # sums of exponentials; queries and keys that are turned
        block += positions * (w.num_heads + 3 * D) / tp
    ends = positions * (2 * D + 2 + w.vocab_size)  # the last norm; log-probabilities
    layers = w.num_layers * block
    if recompute:
        layers = w.num_layers * positions * D + block
    return itemsize * (layers + ends)


def _share(processes: int) -> float:
    """What a process sends of what it holds, where each of R keeps its own part."""
    return (processes - 1) / processes
