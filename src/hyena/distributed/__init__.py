"""Training on several processes: rows, channels, weights and checkpoints in parts, by ``torch.distributed``.

Weights and the batch are torch's own to spread (``fully_shard``, ``DistributedDataParallel``).
"""

from hyena.distributed.checkpoints import Checkpoints, checkpoint_state
from hyena.distributed.clipping import clip_grad_norm_
from hyena.distributed.context import context_parallel, sum_gradients
from hyena.distributed.cost import Cost, Mesh, Work, cost
from hyena.distributed.planning import H100, Machine, Plan, plan
from hyena.distributed.shards import gather, shard
from hyena.distributed.tensor import tensor_parallel, tensor_parallel_plan
from hyena.distributed.whole import full_state_dict

__all__ = [
    "H100",
    "Checkpoints",
    "Cost",
    "Machine",
    "Mesh",
    "Plan",
    "Work",
    "checkpoint_state",
    "clip_grad_norm_",
    "context_parallel",
    "cost",
    "full_state_dict",
    "gather",
    "plan",
    "shard",
    "sum_gradients",
    "tensor_parallel",
    "tensor_parallel_plan",
]
