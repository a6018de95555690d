"""What the examples in this folder share: Shakespeare's characters, a small Hyena model, and a loop that trains.

Dimensions: B batch, L length, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import hyena
from hyena.models import CausalLM, CausalLMConfig, next_token_loss

TEXT = (Path(__file__).parents[1] / "shakespeare" / "tinyshakespeare.txt").read_text(encoding="utf-8")
VOCABULARY = "".join(sorted(set(TEXT)))  # V = 65
NUMBER = {character: i for i, character in enumerate(VOCABULARY)}
DATA = torch.tensor([NUMBER[character] for character in TEXT])


def language_model(length: int, d_model: int, num_layers: int = 2, extra: int = 0) -> CausalLM:
    """Hyena in attention's place, for characters and so many ``extra`` symbols."""
    return CausalLM(CausalLMConfig(len(VOCABULARY) + extra, length, d_model=d_model, num_layers=num_layers))


def batch_loss(model: nn.Module, rows: int, length: int) -> Tensor:
    """The loss on pieces of the text that are drawn at random, in nats a character."""
    at = torch.randint(len(DATA) - length, (rows, 1)) + torch.arange(length)  # (B, L)
    return next_token_loss(model(DATA[at]), DATA[at + 1])


def train(model: nn.Module, loss_of: Callable[[], Tensor], steps: int, lr: float = 3e-3) -> list[float]:
    """AdamW's losses, of ``loss_of()`` on a new batch each; prints ten of them."""
    optimizer = torch.optim.AdamW(hyena.param_groups(model, lr=lr), betas=(0.9, 0.99))
    losses = []
    for step in range(1, steps + 1):
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % max(1, steps // 10) == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return losses
