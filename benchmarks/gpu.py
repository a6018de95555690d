"""Everything there is to know of a GPU, in one run: the build, the CUDA tests, and every benchmark that has a bar.

    benchmarks/gpu.sh [--only device bandwidth …] [--skip tests …] [--budget 530] [--out DIR] [--dry-run]
    benchmarks/gpu.sh --prebuilt .gpu/base …

Stages are ``build``, ``tests`` and the sections of gpu_measurements.py. Each has a limit of its own, and all together
the budget; what fails or takes too long is recorded, and the next one runs. Results go to
``results/gpu-<device>.json``, and to DIR; sections that do not run this time keep what stands there of the same
commit, so that a second run can do the rest. Whenever it is stopped (SIGINT, SIGTERM), what was found until then is
recorded. ``--prebuilt`` takes a package that gpu_prebuild.sh has built, in place of the stage ``build``.

Prints a table with the bar of each row and whether it is reached, and draws what is in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_plot import plot
from gpu_predictions import predicted_rows
from gpu_tests import tail, tests
from measure import current_commit, write_whole

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
INSTALLED = ROOT / "build" / "gpu"
SECTIONS = {  # and the seconds that each may take
    "device": 40,
    "bandwidth": 90,
    "attention": 60,
    "flash_fft_conv": 60,
    "direct_conv": 60,
    "accuracy": 60,
    "causality": 30,
    "one_row": 40,
    "against_fallback": 120,
    "memory": 120,
    "hyenadna": 60,
    "kernels": 90,
}
STAGES = {"build": 240, "tests": 170} | SECTIONS


class Run:
    """One run: its clock, its folder, and what it has found."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.end = args, time.monotonic() + args.budget
        self.folder = ROOT / "build" / "gpu-run"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        prebuilt = getattr(args, "prebuilt", None)
        self.package = prebuilt.resolve() if prebuilt else INSTALLED
        self.stages: dict[str, dict[str, Any]] = {}

    def limit(self, stage: str) -> float:
        """Seconds that a stage may take."""
        return min(STAGES[stage], self.end - time.monotonic() - 5)

    def environment(self, **more: str) -> dict[str, str]:
        """That of everything that is run: with the package that is measured."""
        return os.environ | {"PYTHONPATH": str(self.package), "PYTHONUNBUFFERED": "1"} | more

    def command(self, stage: str, command: list[str], log: str, **environment: str) -> dict[str, Any]:
        """Runs a command up to the stage's limit, its output in a log; what came of it."""
        return self.commands(stage, {log: command}, **environment)[log]

    def commands(
        self, stage: str, commands: dict[str, list[str]], within: float = float("inf"), **environment: str
    ) -> dict[str, dict[str, Any]]:
        """Runs commands side by side, by the log that each writes, up to the stage's limit or ``within`` seconds."""
        limit, began = min(within, self.limit(stage)), time.monotonic()
        found: dict[str, dict[str, Any]] = {log: {"status": "no time left"} for log in commands}
        if limit <= 0:
            return found
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for log, command in commands.items():
                print(f"===== {stage}: {' '.join(command)}", flush=True)
                with (self.folder / log).open("ab") as output:
                    started[log] = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=self.environment(**environment),
                        start_new_session=True,
                        preexec_fn=hears_interrupts,
                    )
            while any(p.poll() is None for p in started.values()) and time.monotonic() - began < limit:
                for log, process in started.items():
                    if process.poll() is not None and "seconds" not in found[log]:
                        found[log]["seconds"] = round(time.monotonic() - began, 1)
                time.sleep(0.1)
        finally:
            late = {log for log, process in started.items() if process.poll() is None}
            stop(*started.values())
        for log, process in started.items():
            code = process.wait()
            found[log].setdefault("seconds", round(time.monotonic() - began, 1))
            stopped, exited = f"stopped after {limit:.0f} s", "ok" if code == 0 else f"exit status {code}"
            found[log]["status"] = stopped if log in late else exited
        return found


def hears_interrupts() -> None:
    """Undoes what a shell does to commands in the background, which ignore SIGINT and pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(*processes: subprocess.Popen[bytes], patience: float = 15) -> None:
    """Ends processes and those that they started: first asks them to (pytest then says what failed), then kills."""
    running = [process for process in processes if process.poll() is None]
    until = time.monotonic() + patience
    for process in running:
        if patience > 0:
            process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(run: Run) -> None:
    """Builds the package for this GPU into the folder build: nothing is installed into the Python that runs."""
    shutil.rmtree(INSTALLED, ignore_errors=True)
    options = [f"build-dir={ROOT / 'build' / 'gpu-cmake'}"]
    if run.args.dry_run:
        options.append("cmake.define.HYENA_CUDA=OFF")
    else:
        options += ["cmake.define.HYENA_CUDA=ON", "cmake.define.CMAKE_CUDA_ARCHITECTURES=native"]
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v"]
    command += [f"--config-settings={option}" for option in options] + ["--target", str(INSTALLED), str(ROOT)]
    # Found where CUDA's own installer puts it, on the PATH or not.
    path = os.environ.get("PATH", "") + ":/usr/local/cuda/bin"
    found = run.command("build", command, "build.log", PATH=path)
    run.stages["build"] = found
    if found["status"] != "ok":
        found["tail"] = tail(run.folder / "build.log")


def preflight(run: Run) -> str | None:
    """What keeps the package that was built from being measured, in a line."""
    code = "import torch, hyena; from hyena import ops; print(ops.backend_report()); "
    if not run.args.dry_run:
        code += (
            "assert ops.has_kernel('recurrence', torch.device('cuda', 0), torch.bfloat16), 'no kernel for the GPU'; "
        )
    command = [sys.executable, "-c", code + "import gpu_measurements"]
    more = {"PYTHONPATH": f"{run.package}{os.pathsep}{HERE}"}
    try:
        tried = subprocess.run(
            command,
            cwd=run.folder,
            env=run.environment(**more),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{run.package}: importing hyena takes more than 90 s"
    print(tried.stdout, end="", flush=True)
    if tried.returncode == 0:
        return None
    said = tried.stderr.strip().splitlines()
    return f"{run.package}: {said[-1] if said else f'exit status {tried.returncode}'}"


def measure(run: Run, wanted: list[str]) -> None:
    """Runs sections in one process, and in another what is left after one that fails or takes too long."""
    left = list(wanted)
    while left:
        command = [sys.executable, str(HERE / "gpu_measurements.py"), *(["--dry-run"] if run.args.dry_run else [])]
        command += [str(run.folder), *left]
        print(f"===== {' '.join(left)}", flush=True)
        # In a folder where no other hyena is.
        worker = subprocess.Popen(command, cwd=run.folder, env=run.environment(), start_new_session=True)
        try:
            done = watch(run, worker, left)
        finally:
            stop(worker, patience=0)
        left = [name for name in left if name not in done]


def watch(run: Run, worker: subprocess.Popen[bytes], left: list[str]) -> list[str]:
    """Waits for a process that runs sections, and ends it where one takes too long; the sections that are over."""
    running, since, marker = left[0], time.monotonic(), run.folder / "running"
    marker.unlink(missing_ok=True)
    limit = run.limit(running) + 30  # it starts, too
    while worker.poll() is None:
        now = marker.read_text() if marker.exists() else running
        if now != running and now in left:
            record(run)  # in case nobody lets this process finish
            running, since, limit = now, time.monotonic(), run.limit(now)
        if time.monotonic() - since > limit or time.monotonic() > run.end:
            stop(worker, patience=0)
            break
        time.sleep(0.2)
    now = marker.read_text() if marker.exists() else running
    over = left[: left.index(now) + 1] if now in left else [running]
    code = worker.wait()
    for name in over[:-1]:
        run.stages[name] = {"status": "ok"}
    seconds = round(time.monotonic() - since, 1)
    status = {0: "ok", 3: "the device failed", -9: f"stopped after {seconds} s"}.get(code, f"exit status {code}")
    run.stages[over[-1]] = {"status": status}
    if time.monotonic() > run.end - 10:
        for name in left[len(over) :]:
            run.stages[name] = {"status": "no time left"}
        return left
    return over


# ---- the record, the table and the plot ----------------------------------------------------------------------------


def record(run: Run) -> Path:
    """Merges what was found into the device's file."""
    sections = {}
    for name in SECTIONS:
        path = run.folder / f"{name}.json"
        if path.exists():
            sections[name] = json.loads(path.read_text())
    devices = [s["machine"]["device"] for s in sections.values()]
    device = "dry-run" if run.args.dry_run else devices[0] if devices else device_name()
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"
    # A dry run measures nothing, and leaves nothing among the results.
    folder = run.folder if run.args.dry_run else RESULTS
    path = folder / name
    for before in (path, *([run.args.out / name] if run.args.out else [])):
        if before.exists():
            kept = json.loads(before.read_text())
            break
    else:
        kept = {"stages": {}, "sections": {}}
    commit = run.args.commit or current_commit()
    for section in sections.values():
        section["machine"]["commit"] = commit
    # What other code measured says nothing of this.
    stages = {n: stage for n, stage in kept["stages"].items() if stage.get("commit") == commit}
    stages |= {n: {"commit": commit, "date": time.strftime("%Y-%m-%d")} | stage for n, stage in run.stages.items()}
    sections = {n: s for n, s in kept["sections"].items() if s["machine"].get("commit") == commit} | sections
    kept = {"stages": stages, "sections": sections}
    for place in (folder, run.args.out):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / name, kept, indent=1)
    return path


def device_name() -> str:
    """The GPU's name, where no section says it."""
    code = "import torch; print(torch.cuda.get_device_name())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def rows(kept: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table: section, what, value, bar, verdict."""
    lines = []
    for name, stage in kept["stages"].items():
        if name not in kept["sections"]:
            counts = ", ".join(f"{stage[k]} {k}" for k in ("tests", "failures", "errors", "skipped") if k in stage)
            lines.append((name, stage["status"], counts, "", "" if stage["status"] == "ok" else "FAIL"))
    lines += predicted_rows(kept["sections"])
    for name in SECTIONS:
        if name not in kept["sections"]:
            continue
        for r in kept["sections"][name]["rows"]:
            value = "-" if r["value"] is None else f"{r['value']:.3g} {r['unit']}"
            bar = "" if r.get("bar") is None else f"{r['bar']:g}"
            verdict = {True: "pass", False: "FAIL", None: ""}[r.get("ok")]
            lines.append((name, r["what"], value if "error" not in r else r["error"][:90], bar, verdict))
            if "error" in r:
                lines[-1] = (*lines[-1][:4], "ERROR")
        if not kept["sections"][name]["done"]:
            status = kept["stages"].get(name, {}).get("status", "unfinished")
            lines.append((name, "…", f"unfinished: {status}", "", "FAIL"))
    return lines


def show(lines: list[tuple[str, ...]]) -> str:
    """Prints and returns the table, with how many bars are reached."""
    widths = [max(len(line[i]) for line in lines) for i in range(4)] if lines else []
    verdicts = [line[4] for line in lines]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "FAIL", "ERROR"))
    shown = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)) + "  " + line[4] for line in lines]
    table = "\n".join([*shown, counts])
    print(table)
    return table


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="nothing but these stages")
    parser.add_argument("--skip", nargs="+", choices=list(STAGES), default=[], help="all stages but these")
    parser.add_argument("--budget", type=float, default=530, help="seconds for everything together")
    parser.add_argument("--out", type=Path, help="folder that the record, the plot and the logs are copied to")
    parser.add_argument("--commit", help="what is measured, where there is no git to ask")
    parser.add_argument("--prebuilt", type=Path, help="folder of a package that is built already: no stage 'build'")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    return parser.parse_args()


def run_stages(run: Run, stages: list[str]) -> None:
    """Runs the stages; raises SystemExit where the package cannot be measured."""
    if "build" in stages:
        build(run)
        if run.stages["build"]["status"] != "ok":
            sys.exit("the build failed:\n" + "\n".join(run.stages["build"].get("tail", [])))
    wanted = [name for name in stages if name in SECTIONS]
    if (wanted or run.args.prebuilt) and (wrong := preflight(run)) is not None:
        sys.exit(wrong)
    if "tests" in stages:
        tests(run)
        record(run)
    measure(run, wanted)


def finish(run: Run) -> None:
    """Records, prints and draws what was found."""
    path = record(run)
    table = show(rows(json.loads(path.read_text())))
    drawn = path.with_suffix(".png")
    try:
        plot(path, drawn)
    except Exception as error:  # no figure is worth the figures
        print(f"no plot: {type(error).__name__}: {error}")
    print(f"wrote {path}")
    if run.args.out:
        (run.args.out / "table.txt").write_text(table + "\n")
        for file in (drawn, *sorted(run.folder.glob("*.log"))):
            if file.exists():
                shutil.copy(file, run.args.out)


def main() -> None:
    """Runs the stages."""
    args = arguments()
    stages = [name for name in STAGES if name in (args.only or STAGES) and name not in args.skip]
    if args.prebuilt and "build" in stages:
        stages.remove("build")
    if "bandwidth" in stages and "device" not in stages:
        stages.insert(stages.index("bandwidth"), "device")  # whose rates it needs
    run = Run(args)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        run_stages(run, stages)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        finish(run)


if __name__ == "__main__":
    main()
