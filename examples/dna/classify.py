"""Fine-tunes HyenaDNA on a chromosome: real windows against windows whose letters are shuffled.

    python examples/dna/classify.py [pretraining steps] [fine-tuning steps]

A task as those of GenomicBenchmarks: sequences of one length, two classes. A shuffled window has the letters of a real
one, so the classes differ by their order alone. First a small model learns to predict the next letter, then the same
weights learn the classes, seeing either strand; the test is on a part of the chromosome that neither has seen.
Dimensions: B batch, L length.
"""

import random
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import hyena
from hyena.checkpoints import load_hyenadna, save_hyenadna
from hyena.genomics import DNATokenizer, augment_strands, classify, read_fasta, score
from hyena.models import HyenaDNA, HyenaDNAConfig, next_token_loss

PRETRAINING, FINE_TUNING = ([*map(int, sys.argv[1:])] + [400, 300][len(sys.argv) - 1 :])[:2]
B, L = 32, 256
torch.manual_seed(0)
draw = random.Random(0)

chromosome = next(read_fasta(Path(__file__).parent / "cryptosporidium-chr1.fa.gz", alphabet="ACGTN")).sequence
split = len(chromosome) * 8 // 10
tokenizer = DNATokenizer()


def windows(part: str, number: int) -> list[str]:
    return [part[at : at + L] for at in (draw.randrange(len(part) - L) for _ in range(number))]


def shuffled(window: str) -> str:
    return "".join(draw.sample(window, L))


def labelled(part: str, number: int) -> tuple[list[str], torch.Tensor]:
    """As many real windows, label 1, as shuffled ones, label 0."""
    real = windows(part, number)
    return real + [shuffled(window) for window in windows(part, number)], torch.tensor([1] * number + [0] * number)


def train(model: HyenaDNA, steps: int, lr: float, loss_of) -> None:
    optimizer = torch.optim.AdamW(hyena.param_groups(model, lr=lr))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 4))
    for step in range(1, steps + 1):
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"  step {step}: loss {loss.item():.3f}")


print("Predicting the next letter")
config = HyenaDNAConfig(l_max=L, d_model=64, num_layers=2, d_inner=128, filter_width=32, embed_dropout=0.0, head="lm")
model = HyenaDNA(config)


def next_letters() -> torch.Tensor:
    tokens = augment_strands(tokenizer(windows(chromosome[:split], B)).tokens)  # (B, L)
    return next_token_loss(model(tokens[:, :-1]), tokens[:, 1:])


train(model, PRETRAINING, 3e-3, next_letters)
held_out = windows(chromosome[split:], 50)
mean = sum(each.mean for each in score(model, held_out, strands="both")) / len(held_out)
print(f"held out: {-mean:.3f} nats a letter; letters drawn evenly would have {torch.tensor(4.0).log():.3f}")
save_hyenadna(model, "cryptosporidium")

print("Real or shuffled")
model = load_hyenadna("cryptosporidium", num_labels=2)  # warns that the head starts at random


def classes() -> torch.Tensor:
    texts, labels = labelled(chromosome[:split], B // 2)
    tokens, mask = tokenizer(texts)
    return F.cross_entropy(model(augment_strands(tokens), mask), labels)


train(model, FINE_TUNING, 1e-3, classes)
texts, labels = labelled(chromosome[split:], 250)
for strands in ("forward", "both"):
    right = (classify(model, texts, strands=strands).argmax(1) == labels).float().mean()
    print(f"accuracy on held-out windows, strands={strands}: {right:.3f}")
save_hyenadna(model, "cryptosporidium-real-or-shuffled")
