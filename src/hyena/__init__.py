"""Layers that take the place of attention in PyTorch models: sub-quadratic in length, exactly causal.

The operator is Hyena (Poli et al. 2023, arXiv 2302.10866): long convolutions, whose filters a small network generates,
alternating with gates. It costs ``L log L`` for ``L`` positions where attention costs ``L²``.

A layer maps ``(batch, length, channels)`` to the same shape, for any length up to ``l_max``:

    >>> import torch
    >>> import hyena
    >>> mixer = hyena.HyenaOperator(d_model=64, l_max=1024)
    >>> u = torch.randn(2, 300, 64)
    >>> mixer(u).shape
    torch.Size([2, 300, 64])

It is causal unless told otherwise: a change of the last input changes the last output only, to rounding.

    >>> v = u.clone()
    >>> v[:, -1] += 1
    >>> changed = (mixer(v) - mixer(u)).abs().amax(dim=(0, 2)) > 1e-4
    >>> changed[:-1].any().item(), changed[-1].item()
    (False, True)

Rows of different lengths take a mask, True where a position is kept:

    >>> keep = torch.arange(300) < torch.tensor([[300], [200]])
    >>> mixer(u, mask=keep).shape
    torch.Size([2, 300, 64])

Decoding is exact, a chunk or a position at a time:

    >>> mixer = mixer.eval()
    >>> state = mixer.init_state(batch=2)
    >>> y, state = mixer.prefill(u[:, :299], state)
    >>> y_t, state = mixer.step(u[:, 299], state)
    >>> torch.allclose(y_t, mixer(u)[:, 299], atol=1e-4)
    True

In a model that exists, one call swaps the attention; the new layers are then to be trained:

    >>> model = torch.nn.TransformerEncoderLayer(64, nhead=4, batch_first=True)
    >>> report = hyena.replace_attention(model, l_max=1024)
    >>> len(report), type(model.self_attn).__name__
    (1, 'HyenaAttention')

Where things are:

- ``HyenaOperator``, and ``hyena.mixers``: layers that mix along the sequence;
- ``HyenaAttention`` (the interface of ``nn.MultiheadAttention``), ``replace_attention``, ``register_attention``,
  ``AttentionAdapter``: Hyena in models that were written for attention;
- ``convert``, and ``hyena.conversion``: a trained model's attention turned into Hyena that computes nearly the same;
- ``hyena.filters``: what the long convolutions convolve with, and the base class of filters of your own;
- ``hyena.conv``: a filter applied to a sequence, at once or step by step; ``distill`` makes steps constant in time;
- ``hyena.functional``: convolutions and matrices as functions of tensors;
- ``hyena.models`` and ``hyena.generation``: whole models, and text from them;
- ``hyena.checkpoints``: weights that other projects have trained;
- ``hyena.genomics``: DNA: tokenizers, FASTA files, scores, embeddings, classes, generation (to be imported by name);
  ``hyena.command``: the same from a shell;
- ``hyena.export``: ONNX files, programs in plain aten, compiled packages (to be imported by name);
- ``hyena.distributed``: rows and channels spread over processes (to be imported by name);
- ``param_groups``: learning rates and weight decay for an optimizer;
- ``backend_report()``: whether the compiled kernels are in use here, and if not, why.
"""

from hyena import checkpoints, functional, generation, models
from hyena.conv import distill
from hyena.conversion import ConversionReport, convert
from hyena.filters import HyenaFilter
from hyena.integrations.adapter import AttentionAdapter
from hyena.integrations.attention import HyenaAttention
from hyena.integrations.replace import ReplacementReport, replace_attention
from hyena.integrations.sites import AttentionSite, CannotReplaceError, register_attention
from hyena.mixers import HyenaOperator
from hyena.ops import backend_report
from hyena.optim import param_groups

__all__ = [
    "AttentionAdapter",
    "AttentionSite",
    "CannotReplaceError",
    "ConversionReport",
    "HyenaAttention",
    "HyenaFilter",
    "HyenaOperator",
    "ReplacementReport",
    "backend_report",
    "checkpoints",
    "convert",
    "distill",
    "functional",
    "generation",
    "models",
    "param_groups",
    "register_attention",
    "replace_attention",
]
__version__ = "0.1.0"
