"""cuDNN's causal convolution beside this library's: times, errors, and what a loud future does to the past.

    python beside_cudnn.py libcudnn_ext.so.9 --out cudnn.json [--budget 200] [--dry-run]

bf16, 64 x 768 (fewer rows where they are long), filters as long as the rows and shorter ones. cuDNN's has no gates: the
comparable times are those with the gates as torch's products. What fails is recorded as text, and the next shape is
measured, in another process where the device gave up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cudnn_shapes import SHAPES
from measure import write_whole

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measures in processes that may fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="libcudnn_ext.so.9 of cuDNN 9.26 or later")
    parser.add_argument("--out", type=Path, help="the record, rewritten after each shape")
    parser.add_argument("--budget", type=float, default=200, help="seconds for everything together")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes, where cuDNN fails")
    args = parser.parse_args()
    end, first, rows = time.monotonic() + args.budget, 0, []
    while first < len(SHAPES) and time.monotonic() < end:
        command = [
            sys.executable,
            str(HERE / "cudnn_shapes.py"),
            args.library,
            "--first",
            str(first),
            *(["--dry-run"] * args.dry_run),
        ]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            trying = first
            assert process.stdout is not None
            for line in lines_until(process, end):
                found = json.loads(line) if line.startswith("{") else {}
                trying = found.pop("trying", trying)
                if found:
                    rows.append(found)
                    print(json.dumps(found), flush=True)
                if args.out:
                    write_whole(args.out, rows, 1)
        if process.returncode == 0:
            break
        rows.append({"L": SHAPES[trying][0], "taps": SHAPES[trying][1], "failed": f"exit status {process.returncode}"})
        first = trying + 1
    if args.out:
        write_whole(args.out, rows, 1)
    print(summary(rows))


def lines_until(process: subprocess.Popen[str], end: float) -> Iterator[str]:
    """Lines that a process prints, which is ended when the time is up."""
    timer = threading.Timer(max(0.1, end - time.monotonic()), process.kill)
    timer.start()
    try:
        yield from process.stdout or ()
    finally:
        timer.cancel()


def summary(rows: list[dict[str, Any]]) -> str:
    """How many times as long as ours cuDNN takes, with gates."""
    lines = []
    for row in rows:
        said = [f"L={row['L']} taps={row['taps']}"]
        for what in ("", "backward "):
            peer = row.get(f"cudnn {what}with gates ms")
            for op in ("gated_conv", "direct_conv"):
                own = row.get(f"{op} {what}with gates ms")
                if isinstance(own, float):
                    over = f" ({peer / own:.2f} x)" if isinstance(peer, float) else ""
                    said.append(f"{op} {what}{own:.3f} ms{over}")
        said += [f"{name}: {row[name]}" for name in ("cudnn", "hyena", "failed") if name in row]
        lines.append("; ".join(said))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
