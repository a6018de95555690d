"""A syntactic bias above Hyena: the gates of Ordered Neurons (Shen, Tan et al. 2018, arXiv 1810.09536).

    python examples/compose/ordered.py [steps]

Neurons stand in an order: erasing one erases all below it, as the end of a clause ends the phrases in it. Dimensions: B
batch, L length, D channels, V levels of D / V neurons.
"""

import sys

import torch
from characters import TEXT, VOCABULARY, batch_loss, language_model, train
from torch import Tensor, nn

from hyena.mixers import Mixer

B, L, D, V = 16, 64, 64, 16


def cumax(x: Tensor) -> Tensor:
    """Opens softly from some level on: rises to 1 along the levels (section 4.1)."""
    return x.softmax(-1).cumsum(-1)


def scan(a: Tensor, x: Tensor) -> Tensor:
    """``c_t = a_t c_(t-1) + x_t`` for all t, in rounds that look twice as far back each."""
    step = 1
    while step < x.size(1):
        x = torch.cat([x[:, :step], x[:, step:] + a[:, step:] * x[:, :-step]], dim=1)
        a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], dim=1)
        step *= 2
    return x


class OrderedNeurons(Mixer):
    """ON-LSTM's cell (equations 4 to 14) without its own last output in the gates, which see Hyena's layers instead.

    So it need not wait for itself: the row is computed at once.
    """

    causal = True

    def __init__(self, d_model: int, l_max: int, levels: int = V) -> None:
        super().__init__()
        self.d_model, self.l_max, self.levels = d_model, l_max, levels
        self.in_proj = nn.Linear(d_model, 4 * d_model + 2 * levels)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, u, mask=None, cu_seqlens=None, max_seqlen=None):
        self.check_rows(u, cu_seqlens, max_seqlen)
        f, i, o, new, forget, enter = self.in_proj(u).split([self.d_model] * 4 + [self.levels] * 2, dim=2)
        forget, enter = cumax(forget), 1 - cumax(enter)  # (B, L, V): the levels that are kept, those that are written
        self.distance = 1 - forget.mean(2)  # how high the phrase is that begins here (section 5.2)
        forget, enter = (t.repeat_interleave(self.d_model // self.levels, dim=2) for t in (forget, enter))
        both = forget * enter
        f, x = f.sigmoid() * both + forget - both, (i.sigmoid() * both + enter - both) * new.tanh()
        if mask is not None:  # padding keeps all and adds nothing
            f, x = f.where(mask[..., None], 1.0), x.where(mask[..., None], 0.0)
        if cu_seqlens is not None:  # a packed row forgets the one before it
            f = f.index_fill(1, cu_seqlens[:-1].long(), 0.0)
        return self.out_proj(o.sigmoid() * scan(f, x).tanh())


def main(steps: int = 300) -> dict:
    torch.manual_seed(0)
    model = language_model(L, D, num_layers=3)
    cell = model.blocks[2].mixer = OrderedNeurons(D, L)
    losses = train(model, lambda: batch_loss(model, B, L), steps)
    text = TEXT[: B * L]
    model(torch.tensor([VOCABULARY.index(c) for c in text]).view(B, L))
    places = {"newline": "\n", "space": " ", "letter": "abcdefghijklmnopqrstuvwxyz"}
    distance = cell.distance.flatten()
    distance = {name: distance[[c in few for c in text]].mean().item() for name, few in places.items()}
    print("mean syntactic distance at a", ", ".join(f"{name} {d:.2f}" for name, d in distance.items()))
    return {"model": model, "losses": losses, "distance": distance}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
