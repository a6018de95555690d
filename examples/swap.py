"""Replaces the attention of a model that is there already, and trains what is new.

    python examples/swap.py [steps]

The task: say which digit comes up most often in a long row of them. Dimensions: B batch, L length, D channels.
"""

import sys
import time

import torch
from torch import Tensor, nn

import hyena

B, L, D, DIGITS = 16, 512, 64, 10
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
torch.manual_seed(0)


class Classifier(nn.Module):
    """A transformer as PyTorch has it, written without a thought of Hyena."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(DIGITS, D)
        layer = nn.TransformerEncoderLayer(D, nhead=4, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(D, DIGITS)

    def forward(self, digits: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(digits.size(1))
        x = self.encoder(self.embedding(digits), mask=causal, is_causal=True)  # (B, L, D)
        return self.head(x[:, -1])  # (B, DIGITS): the last position has to know what came before it


def batch() -> tuple[Tensor, Tensor]:
    answer = torch.randint(DIGITS, (B, 1))
    digits = torch.randint(DIGITS, (B, L))
    return torch.where(torch.rand(B, L) < 0.3, answer, digits), answer[:, 0]  # (B, L), (B,)


def seconds(model: nn.Module, digits: Tensor) -> float:
    with torch.no_grad():
        model(digits)
        start = time.perf_counter()
        model(digits)
    return time.perf_counter() - start


model = Classifier()
digits = torch.randint(DIGITS, (B, L))
before = seconds(model, digits)

# One call. The report says which modules were replaced, and which were kept and why.
report = hyena.replace_attention(model, l_max=L, causal=True)
print(report)
print(f"one forward: {before:.3f} s with attention, {seconds(model, digits):.3f} s with Hyena\n")

# The new layers are untrained: Hyena takes attention's place in the architecture, not in its weights.
optimizer = torch.optim.AdamW(hyena.param_groups(model, lr=3e-3))
for step in range(1, STEPS + 1):
    digits, answer = batch()
    logits = model(digits)
    loss = nn.functional.cross_entropy(logits, answer)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == STEPS:
        print(f"step {step}: loss {loss.item():.3f}, {(logits.argmax(1) == answer).sum()} of {B} right")
