"""Training on several processes: rows of which each process holds some positions, by ``torch.distributed``.

Weights and the batch are torch's own to spread (``fully_shard``, ``DistributedDataParallel``).
"""

from hyena.distributed.context import context_parallel, sum_gradients
from hyena.distributed.shards import gather, shard

__all__ = ["context_parallel", "gather", "shard", "sum_gradients"]
