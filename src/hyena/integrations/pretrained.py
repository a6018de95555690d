"""Loading of ``transformers`` models that were saved with another mixer in attention's place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyena.integrations.adapters.transformers.record import Unsaved, decode
from hyena.integrations.replace import replace_attention


def load_pretrained(
    folder: str | Path, *, model_class: type | None = None, options: dict[str, Any] | None = None, **settings: Any
) -> nn.Module:
    """Loads what ``save_pretrained`` of a model of ``transformers`` has written after :func:`hyena.replace_attention`.

    ``model = load_pretrained(folder)``

    ``from_pretrained`` of the plain class raises for such a folder (the shape of a weight of each replaced layer): it
    would put attention with random weights there.

    Args:
        folder: a local folder with ``config.json`` and weights.
        model_class: the model's class; by default the one of transformers that the config names.
        options: what a checkpoint cannot hold, modules and functions that ``replace_attention`` was given as options.
        **settings: more keywords of ``from_pretrained`` (``dtype``, ``device_map``, …).

    Returns:
        The model in eval mode, with the mixers that were saved.

    Raises:
        ValueError: no replaced attention in the folder, options that are needed, or weights that do not fit.
    """
    import transformers

    folder = Path(folder)
    records = dict(_records(folder))
    if not records:
        raise ValueError(f"{folder} holds no record of replaced attention: load it with from_pretrained")
    config = transformers.AutoConfig.from_pretrained(folder)
    if model_class is None:
        named = (config.architectures or ["(none)"])[0]
        model_class = getattr(transformers, named, None)
        if model_class is None:
            raise ValueError(f"transformers has no class {named}, which the config names: pass model_class=")
    base: Any = model_class

    # Some models are saved under other names than they have, which are the names in the records.
    names = [*map(re.escape, records), *(rf"{re.escape(r['name'])}\.[^.]+\.\w+$" for r in records.values())]
    ignored = [*(getattr(base, "_keys_to_ignore_on_load_unexpected", None) or ()), *names]
    single = getattr(base, "_keep_in_fp32_modules_strict", None)
    if _dtype(settings.get("dtype"), config) in (torch.float16, torch.bfloat16):  # there filters keep float32 weights
        single = [*(single or ()), r"operator\.(.+\.)?filter\."]

    class Rebuilt(base):
        _keys_to_ignore_on_load_unexpected = ignored
        _keep_in_fp32_modules_strict = single

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            rebuild(self, records, options or {})

    Rebuilt.__name__, Rebuilt.__qualname__, Rebuilt.__module__ = base.__name__, base.__qualname__, base.__module__
    model, found = Rebuilt.from_pretrained(folder, output_loading_info=True, **settings)
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(f"the weights in {folder} do not fit the rebuilt model: {wrong}")
    model.__class__ = base
    return model.eval()


def rebuild(model: nn.Module, records: dict[str, dict[str, Any]], options: dict[str, Any]) -> None:
    """Replaces attention as ``records`` say, by the names of their tensors."""
    modules = dict(model.named_modules())
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for key, record in records.items():
        record = dict(record)
        name = record.pop("name")
        # Some models are saved under other names than they have; then the record's own counts.
        name = next((n for n in (key.rpartition(".")[0].rpartition(".")[0], name) if n in modules), name)
        if name not in modules:
            raise ValueError(f"the checkpoint replaced {name!r}, which a {type(model).__name__} does not have")
        record["options"] = {k: v for k, v in record["options"].items() if k not in options}
        unsaved = [f"{k}={v}" for k, v in record["options"].items() if isinstance(v, Unsaved)]
        if "mixer" in options:
            record["mixer"] = None
        unsaved += [f"mixer={record['mixer']}"] * isinstance(record["mixer"], Unsaved)
        if unsaved:
            raise ValueError(
                f"{name!r} was replaced with {', '.join(unsaved)}, which a checkpoint cannot hold: pass it in options="
            )
        for settings, names in groups:
            if repr(settings) == repr(record):
                names.append(name)
                break
        else:
            groups.append((record, [name]))
    for settings, names in groups:
        chosen = set(names)
        mixer = {} if settings["mixer"] is None else {"mixer": settings["mixer"]}
        replace_attention(
            model,
            where=lambda name, module, chosen=chosen: name in chosen,  # type: ignore[misc]
            l_max=settings["l_max"],
            causal=settings["causal"],
            multi_head=settings["multi_head"],
            **mixer,
            **settings["options"],
            **options,
        )


def _dtype(asked: Any, config: Any) -> Any:
    found = getattr(config, "dtype", None) if asked in (None, "auto") else asked
    return getattr(torch, found) if isinstance(found, str) else found


def _records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, tensor in _weights(folder):
        settings = decode(tensor)
        if settings is not None:
            yield name, settings


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of bytes in the folder's weights, whatever files those are in."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        from safetensors import safe_open

        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # not a dict
                    if opened.get_slice(name).get_dtype() == "U8":
                        yield name, opened.get_tensor(name)
        return
    for file in sorted(folder.glob("pytorch_model*.bin")):
        yield from torch.load(file, weights_only=True, map_location="cpu").items()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json and no weights: it is not a folder of save_pretrained")
