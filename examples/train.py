"""Trains a small language model on Shakespeare's characters: 300 steps, two minutes on a laptop.

    python examples/train.py [steps]

Dimensions: B batch, L length, V vocabulary. shakespeare/train.py is the same with everything around it: validation,
checkpoints that survive being killed, plots.
"""

import sys
from pathlib import Path

import torch

import hyena
from hyena.models import CausalLM, CausalLMConfig

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
B, L = 12, 64
torch.manual_seed(0)

# The text as numbers: one for each character.
text = (Path(__file__).parent / "shakespeare" / "tinyshakespeare.txt").read_text(encoding="utf-8")
vocabulary = "".join(sorted(set(text)))
number = {character: i for i, character in enumerate(vocabulary)}
data = torch.tensor([number[character] for character in text])
split = int(0.9 * len(data))
train, validation = data[:split], data[split:]


def batch(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    start = torch.randint(len(data) - L, (B, 1))
    at = start + torch.arange(L)  # (B, L)
    return data[at], data[at + 1]


# Hyena in attention's place; mixer="Attention" without options is the same model with attention.
config = CausalLMConfig(vocab_size=len(vocabulary), l_max=L, d_model=128, num_layers=4)
model = CausalLM(config)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

# Filters, norms and biases are trained without weight decay, which param_groups knows.
optimizer = torch.optim.AdamW(hyena.param_groups(model, lr=1e-3), betas=(0.9, 0.99))

for step in range(1, STEPS + 1):
    tokens, targets = batch(train)  # (B, L) each
    loss = model.loss(tokens, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step == STEPS:
        model.eval()
        with torch.no_grad():
            held_out = sum(model.loss(*batch(validation)).item() for _ in range(20)) / 20
        model.train()
        print(f"step {step}: training loss {loss.item():.3f}, validation loss {held_out:.3f}")

torch.save({"config": config.to_dict(), "model": model.state_dict(), "vocabulary": vocabulary}, "shakespeare.pt")
print("saved to shakespeare.pt; python examples/generate.py goes on from here")
