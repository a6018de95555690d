"""What other projects document: torch's names lead to its site, the rest stands without a link.

A name that cannot be imported is left to Sphinx, which complains.
"""

import builtins
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from public_names import find

_TORCH = "https://docs.pytorch.org/docs/stable/"
_PAGES = {
    "torch.Tensor": "tensors.html",
    "torch.device": "tensor_attributes.html",
    "torch.dtype": "tensor_attributes.html",
    "torch.nn.Module": "generated/torch.nn.Module.html",
    "torch.nn.MultiheadAttention": "generated/torch.nn.MultiheadAttention.html",
    "torch.Generator": "generated/torch.Generator.html",
}
_SHORT = {"Tensor": "torch.Tensor", "nn.Module": "torch.nn.Module", "device": "torch.device", "dtype": "torch.dtype"}


def resolve(_app: Sphinx, _env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Called by Sphinx for names without a page here."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or target.startswith("hyena."):
        return None
    target = _SHORT.get(target, target)
    if re.fullmatch(r"torch\.nn\.modules\.\w+\.\w+", target):  # where a class is defined, not where it is documented
        target = f"torch.nn.{target.rpartition('.')[2]}"
    if target in _PAGES:
        return nodes.reference("", "", content, internal=False, refuri=f"{_TORCH}{_PAGES[target]}#{target}")
    return content if hasattr(builtins, target) or find(target) is not None else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
