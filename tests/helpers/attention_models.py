"""Small models with attention, of transformers' and of nanoGPT's kind, for the tests of replace_attention."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

from hyena.mixers.hyena import HyenaOperator

D, M, L, LAYERS, VOCAB = 16, 4, 12, 2, 40
SIZES = [12, 7, 1]
EXACT = {"rtol": 0, "atol": 1e-11}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def gpt2(impl: str = "sdpa", cls: type = transformers.GPT2LMHeadModel, **kwargs) -> nn.Module:
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "loss_type": "ForCausalLMLoss"}
    sizes = {"vocab_size": VOCAB, "n_embd": D, "n_layer": LAYERS, "n_head": M, "n_positions": 32}
    config = transformers.GPT2Config(**special | sizes | NO_DROPOUT | kwargs)
    return cls._from_config(config, attn_implementation=impl).double().eval()


def bert(impl: str = "sdpa", cls: type = transformers.BertForMaskedLM, **kwargs) -> nn.Module:
    sizes = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": M}
    more = {"intermediate_size": 2 * D, "max_position_embeddings": 32, "loss_type": "ForMaskedLM"}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.BertConfig(**sizes | more | none | kwargs)
    return cls._from_config(config, attn_implementation=impl).double().eval()


def bert_decoder(impl: str = "sdpa") -> nn.Module:
    return bert(impl, transformers.BertLMHeadModel, is_decoder=True, loss_type="ForCausalLMLoss")


def vit(**kwargs) -> nn.Module:
    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": M, "intermediate_size": 2 * D}
    config = transformers.ViTConfig(**sizes | {"image_size": 12, "patch_size": 4} | kwargs)
    return transformers.ViTForImageClassification(config)


LANGUAGE_MODELS = [gpt2, bert, bert_decoder]


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, (3, L), generator=torch.Generator().manual_seed(seed))


def padding(side: str) -> tuple[Tensor, Tensor]:
    """The (3, L) attention mask, 1 = keep, and positions that count what is kept."""
    at, size = torch.arange(L), torch.tensor(SIZES)[:, None]
    mask = (at < size if side == "right" else at >= L - size).long()
    return mask, (mask.cumsum(1) - 1).clamp_min(0)


class CausalSelfAttention(nn.Module):
    """What a nanoGPT-style model calls its attention, as far as a swap looks at it."""

    def __init__(self, width: int = D, heads: int = M, *, bias: bool = False):
        super().__init__()
        self.n_head = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.25), nn.Dropout(0.125)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.c_attn(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


class MixerOfTokens(CausalSelfAttention):
    """The same under a name that says nothing."""


class TinyGPT(nn.Module):
    """A stack of such attention with a config on top, as nanoGPT has it."""

    def __init__(self, kind: type[nn.Module] = CausalSelfAttention, **config):
        super().__init__()
        self.config = type("Config", (), config)()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": kind()}) for _ in range(LAYERS)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["attn"](x)
        return x


def operators(model: nn.Module) -> list[HyenaOperator]:
    return [m for m in model.modules() if isinstance(m, HyenaOperator)]
