"""A mixture of experts in the MLP's place, beside Hyena: Switch Transformer (Fedus et al. 2021, arXiv 2101.03961).

    python examples/compose/switch.py [steps]

Every position goes through one of E experts: parameters grow with E, the work for a position does not. Dimensions: B
batch, L length, T = B L positions, D channels, I inner width, E experts, S slots of an expert.
"""

import math
import sys

import torch
from characters import batch_loss, language_model, train
from torch import Tensor, nn
from torch.nn import functional as F

B, L, D, E = 16, 64, 64, 4
BALANCE = 0.01  # the weight of the balance loss in the paper


class SwitchMLP(nn.Module):
    """The expert that the router finds most probable, times that probability (equations 1 and 2).

    In training an expert has S = capacity T / E slots (equation 3), which its positions take as they come, so that none
    is pushed out by a later one of its row. Who finds none passes by, on the residual stream. In eval mode there are
    slots for all, and a step of decoding gives what the whole row gives.
    """

    def __init__(self, d_model: int, d_inner: int, experts: int, capacity: float = 1.25) -> None:
        super().__init__()
        self.experts, self.capacity = experts, capacity
        self.router = nn.Linear(d_model, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, d_model, d_inner) * d_model**-0.5)
        self.down = nn.Parameter(torch.randn(experts, d_inner, d_model) * 0.1 * d_inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        positions = x.flatten(0, 1)  # (T, D)
        probability = self.router(positions).float().softmax(dim=1)  # (T, E); float32 whatever the model is in
        gate, expert = probability.max(dim=1)  # (T,) each
        chosen = F.one_hot(expert, self.experts)  # (T, E)
        place = (chosen.cumsum(0) * chosen).sum(1) - 1  # (T,): how many came to its expert before it
        wanted = math.ceil(self.capacity * len(positions) / self.experts)
        slots = wanted if self.training else int(chosen.sum(0).max())
        kept = place < slots
        slot = expert[kept], place[kept]
        inputs = x.new_zeros(self.experts, slots, x.size(-1)).index_put(slot, positions[kept])
        outputs = F.gelu(inputs @ self.up) @ self.down  # (E, S, D)
        y = torch.zeros_like(positions).index_put((kept,), gate[kept, None].to(x.dtype) * outputs[slot])
        self.share, self.dropped = chosen.float().mean(0), 1 - kept.float().mean()
        # Equation 4: 1 where all experts have the same share, E where one has all.
        self.balance = self.experts * (self.share @ probability.mean(0))
        return y.view_as(x)


def main(steps: int = 200) -> dict:
    torch.manual_seed(0)
    model = language_model(L, D)
    for block in model.blocks:
        block.mlp = SwitchMLP(D, 4 * D, E)
    switches = [block.mlp for block in model.blocks]

    def loss() -> Tensor:
        return batch_loss(model, B, L) + BALANCE * sum(switch.balance for switch in switches)

    losses = train(model, loss, steps)
    for i, switch in enumerate(switches):
        shares = ", ".join(f"{share:.0%}" for share in switch.share.tolist())
        print(f"layer {i}: shares of the experts {shares}; {switch.dropped:.0%} of the positions found no slot")
    return {"model": model, "losses": losses, "balance": [switch.balance.item() for switch in switches]}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
