"""Retrieval in the input, as in Atlas (Izacard et al. 2022, arXiv 2208.03299): passages are found, then read.

    python examples/compose/retrieval.py [steps]

Who says these four words? An index over the speeches of Shakespeare's plays finds passages, a Hyena model reads each
of them before the question. Dimensions: B questions, k passages, L characters, P passages in all, W words, S speakers.
"""

import random
import re
import sys
from collections import Counter

import torch
from characters import NUMBER, TEXT, language_model, train
from torch import Tensor, nn
from torch.nn import functional as F

B, K, P, S, SAID, NAME, QUESTION = 32, 2, 700, 10, 40, 16, 24  # a passage has 40 characters of a speech, then the name
L = SAID + NAME + QUESTION
SPEECHES = [speech.split(":\n", 1) for speech in TEXT.split("\n\n") if ":\n" in speech]
SPEAKERS = [name for name, _ in Counter(name for name, _ in SPEECHES).most_common(S)]
INDEXED = [(name, said[:SAID]) for name, said in SPEECHES if name in SPEAKERS and len(said) > SAID]
INDEXED = random.Random(0).sample(INDEXED, P)
ANSWERS = torch.tensor([SPEAKERS.index(name) for name, _ in INDEXED])
WORDS = [re.findall(r"[a-z']+", said.lower())[:-1] for _, said in INDEXED]  # the last one may be cut
LEXICON = {word: i for i, word in enumerate(sorted({word for words in WORDS for word in words}))}


def bag(words: list[str]) -> Tensor:
    return torch.zeros(len(LEXICON)).index_fill(0, torch.tensor([LEXICON[word] for word in words]), 1.0)  # (W,)


class Atlas(nn.Module):
    """A retriever with a weight for each word, and a reader with a symbol for each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(len(LEXICON)))
        self.register_buffer("index", torch.stack([bag(words) for words in WORDS]))  # (P, W)
        self.reader = language_model(L, 64, num_layers=1, extra=S)

    def forward(self, at: Tensor, found: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of passages, (B, k), and of answers by each, (B, k, S), to questions on passages ``at``."""
        asked = [[WORDS[i][j] for j in torch.randperm(len(WORDS[i]))[:4]] for i in at.tolist()]
        bags = torch.stack([bag(words) for words in asked])
        bags, index = (F.normalize(t * self.log_weight.exp(), dim=1) for t in (bags, self.index))
        scores = 10 * bags @ index.T  # (B, P), cosines
        found = scores.topk(K).indices if found is None else found
        pairs = [(*INDEXED[j], " ".join(words) + "?") for words, row in zip(asked, found.tolist()) for j in row]
        rows = [said.ljust(SAID) + name.ljust(NAME) + text[-QUESTION:].rjust(QUESTION) for name, said, text in pairs]
        tokens = torch.tensor([[NUMBER[c] for c in row] for row in rows])  # (B k, L)
        answers = self.reader(tokens, last=True)[:, 0, -S:].log_softmax(1)
        return scores.gather(1, found).log_softmax(1), answers.unflatten(0, (-1, K))


def main(steps: int = 80) -> dict:
    torch.manual_seed(0)
    model, known = Atlas(), P * 4 // 5  # nobody asks about the last fifth before the test

    def loss() -> Tensor:
        at = torch.randint(known, (B,))
        passages, answers = model(at)
        right = answers[torch.arange(B), :, ANSWERS[at]]  # (B, k)
        reader = -(passages.detach() + right).logsumexp(1).mean()
        # Perplexity distillation: the passages that help the reader are to be found first (section 2.2).
        return reader + F.kl_div(passages, right.detach().log_softmax(1), log_target=True, reduction="batchmean")

    losses, at, right = train(model, loss, steps, lr=6e-3), torch.arange(known, P), {}
    for name, found in (("found", None), ("random", torch.randint(P, (P - known, K)))):
        with torch.no_grad():
            passages, answers = model.eval()(at, found)
        right[name] = ((passages[..., None] + answers).logsumexp(1).argmax(1) == ANSWERS[at]).float().mean().item()
    print(f"new questions answered: {right['found']:.0%} with passages found, {right['random']:.0%} with any passages")
    return {"model": model, "losses": losses, "right": right}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
