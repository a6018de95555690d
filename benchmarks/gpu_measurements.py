"""What benchmarks/gpu.py measures: sections of rows (gpu_sections), on a GPU or, at toy sizes, on the CPU.

    python gpu_measurements.py FOLDER device bandwidth …

runs sections one after the other; FOLDER then has ``<section>.json``, rewritten after each row.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_sections.accuracy import accuracy
from gpu_sections.bench import Bench, Job, row
from gpu_sections.causality import causality
from gpu_sections.convolutions import against_fallback, flash_fft_conv
from gpu_sections.direct import direct_conv
from gpu_sections.layers import attention, hyenadna
from gpu_sections.memory import memory
from gpu_sections.one_row import one_row
from gpu_sections.profiles import kernels
from gpu_sections.rooflines import bandwidth, device
from measure import machine, write_whole

from hyena import ops

SECTIONS: dict[str, Callable[[Bench], Iterator[Job]]] = {
    f.__name__: f
    for f in (
        *(device, bandwidth, attention, flash_fft_conv, direct_conv, accuracy),
        *(causality, one_row, against_fallback, memory, hyenadna, kernels),
    )
}


def run(folder: Path, name: str, b: Bench) -> bool:
    """Runs a section and writes its rows; False where the device is not to be relied on afterwards."""
    path, began, healthy = folder / f"{name}.json", time.perf_counter(), True
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {
        "about": SECTIONS[name].__doc__,
        "machine": machine(b.device),
        "done": False,
        "rows": rows,
    }
    for what, measure in SECTIONS[name](b):
        try:
            if name in ("attention", "hyenadna"):
                found = measure()
            else:
                with torch.no_grad():
                    found = measure()
        except Exception as error:
            found = row(None, "", error=f"{type(error).__name__}: {error}"[:800], trace=traceback.format_exc()[-2000:])
            # After an error on the device nothing works any more; running out of memory is none.
            healthy = isinstance(error, torch.OutOfMemoryError) or "CUDA error" not in str(error)
        rows.append({"what": what} | found)
        print(f"{name}: {what}: {found['value']} {found['unit']}{found.get('error', '')}", flush=True)
        record["seconds"] = time.perf_counter() - began
        write_whole(path, record)
        if not healthy:
            return False
        if not b.toy:
            torch.cuda.empty_cache()
    record["done"] = True
    write_whole(path, record)
    return True


def main() -> None:
    """Runs sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    args = parser.parse_args()
    b = Bench("cpu" if args.dry_run else "cuda")
    print(ops.backend_report(), flush=True)
    for name in args.sections:
        found = args.folder / "device.json"
        if found.exists():
            b.rates = {r["what"]: r["rate"] for r in json.loads(found.read_text())["rows"] if "rate" in r}
        (args.folder / "running").write_text(name)
        if not run(args.folder, name, b):
            sys.exit(3)


if __name__ == "__main__":
    main()
