"""Which of the choices that the CUDA kernels make are the best: run-time switches, and libraries built in other ways.

    python tune.py .gpu/tune .gpu/base .gpu/lb2 … --out tune.json [--budget 460] [--dry-run]

Each folder holds a package (gpu_prebuild.sh), which a process of its own measures: the mixing step, 64 x 768, bf16,
forward and backward. Of the first, which exports ``hyena_tune`` (built with HYENA_TUNE), every setting of
tune_settings.py is timed; the others are timed as they are, unless ``--all``. Settings of one length take turns, nine
rounds of about 20 ms each; the first and the last are both the library's own choice, and what these two differ by is
noise. A setting that changes results is wrong, and said to be. The record is rewritten after each row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from measure import write_whole
from tune_settings import LENGTHS

HERE = Path(__file__).resolve().parent


class Tuning:
    """What has been measured, and until when more may be."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.end = args, time.monotonic() + args.budget
        self.rows: list[dict[str, Any]] = []
        self.libraries: dict[str, Any] = {}

    def measure(self, library: Path) -> None:
        """Runs a library's process, and again without what broke it."""
        left, without = list(LENGTHS)[: 2 if self.args.dry_run else None], []
        while left and time.monotonic() < self.end:
            command = [sys.executable, str(HERE / "tune_settings.py"), "--lengths", *map(str, left)]
            command += ["--plain"] if library != self.args.libraries[0] and not self.args.all else []
            command += [*(["--without", *without] if without else []), *(["--dry-run"] if self.args.dry_run else [])]
            environment = os.environ | {"PYTHONPATH": f"{library.resolve()}{os.pathsep}{HERE}", "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/", env=environment, text=True)
            timer = threading.Timer(max(0.1, self.end - time.monotonic()), process.kill)
            timer.start()
            broke = None
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    found = json.loads(line) if line.startswith("{") else {"said": line.rstrip()}
                    if "said" in found:
                        continue
                    if "done" in found:
                        left.remove(found["done"])
                    elif "trying" in found:
                        broke = found["trying"]
                    else:
                        self.keep({"library": library.name} | found)
                code = process.wait()
            finally:
                timer.cancel()
                process.kill()
            self.libraries[library.name] = {"status": "ok" if code == 0 else f"exit status {code}"}
            self.write()
            if code == 0 or time.monotonic() > self.end:
                break
            print(f"{library.name}: exit status {code} at {broke}", flush=True)
            if broke is None or broke in without:
                break
            without.append(broke)

    def keep(self, row: dict[str, Any]) -> None:
        """Prints a row and records it."""
        self.rows.append(row)
        what = f"{row['library']} {row.get('direction', '')} L={row.get('length', '')} {row['setting']}"
        print(f"{what}: {row['error'] if 'error' in row else format(row['ms'], '.4g') + ' ms'}", flush=True)
        self.write()

    def write(self) -> None:
        """Rewrites the record."""
        write_whole(self.args.out, {"commit": self.args.commit, "libraries": self.libraries, "rows": self.rows}, 1)


def table(rows: list[dict[str, Any]]) -> str:
    """For each length and direction: the own choice of each library, its noise, and the best settings."""
    lines = []
    cells = sorted({(r["direction"], r["length"]) for r in rows if "ms" in r})
    for direction, length in cells:
        here = [r for r in rows if "ms" in r and (r["direction"], r["length"]) == (direction, length)]
        for library in dict.fromkeys(r["library"] for r in here):
            own = [r["ms"] for r in here if r["library"] == library and r["setting"].startswith("own")]
            others = [r for r in here if r["library"] == library and not r["setting"].startswith("own")]
            base = sum(own) / max(1, len(own))
            best = sorted(others, key=lambda r: r["ms"])[:3]
            noise = (max(own) - min(own)) / base if own else 0.0
            said = ", ".join(f"{r['setting']} {r['ms'] / base:.3f}" for r in best)
            lines.append(f"{direction:8} {length:6} {library:6} {base:8.4g} ms (noise {noise:.1%})  {said}")
    return "\n".join(lines)


def main() -> None:
    """Measures each library in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", type=Path, help="folders that hold a package hyena")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="settings of every library, not only of the first")
    parser.add_argument("--budget", type=float, default=460, help="seconds for everything together")
    parser.add_argument("--commit", help="what is measured")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    tuning = Tuning(parser.parse_args())
    for library in tuning.args.libraries:
        try:
            tuning.measure(library)
        except Exception as error:  # the next library may do better
            tuning.libraries[library.name] = {"status": f"{type(error).__name__}: {error}"[:300]}
        tuning.write()
    print(table(tuning.rows))
    print(json.dumps(tuning.libraries))


if __name__ == "__main__":
    main()
