"""Everything there is to know of a GPU, in one run: the build, the CUDA tests, and every benchmark that has a bar.

    benchmarks/gpu.sh [--only device bandwidth …] [--skip tests …] [--budget 530] [--out DIR] [--dry-run]

Stages are ``build``, ``tests`` and the sections of gpu_measurements.py. Each has a limit of its own, and all together
the budget; what fails or takes too long is recorded, and the next one runs. Results go to
``results/gpu-<device>.json``, and to DIR; sections that do not run this time keep what stands there of the same
commit, so that a second run can do the rest. Prints a table with the bar of each row and whether it is reached, and
draws what is in the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from measure import current_commit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
INSTALLED = ROOT / "build" / "gpu"
SECTIONS = {  # and the seconds that each may take
    "device": 40,
    "bandwidth": 90,
    "flash_fft_conv": 60,
    "attention": 60,
    "accuracy": 60,
    "against_fallback": 120,
    "hyenadna": 60,
    "memory": 120,
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
        self.stages: dict[str, dict[str, Any]] = {}

    def limit(self, stage: str) -> float:
        """Seconds that a stage may take."""
        return min(STAGES[stage], self.end - time.monotonic() - 5)

    def command(self, stage: str, command: list[str], log: str, **environment: str) -> dict[str, Any]:
        """Runs a command up to the stage's limit, its output in a log; what came of it."""
        limit, began = self.limit(stage), time.monotonic()
        if limit <= 0:
            return {"status": "no time left"}
        with (self.folder / log).open("ab") as output:
            print(f"===== {stage}: {' '.join(command)}", flush=True)
            started = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(INSTALLED), "PYTHONUNBUFFERED": "1"} | environment,
                start_new_session=True,
            )
            try:
                code = started.wait(limit)
                status = "ok" if code == 0 else f"exit status {code}"
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit:.0f} s"
            finally:
                stop(started)
        return {"status": status, "seconds": round(time.monotonic() - began, 1)}


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait()


def tail(path: Path, count: int = 30) -> list[str]:
    """The last lines of a log."""
    return path.read_text(errors="replace").splitlines()[-count:] if path.exists() else []


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


def tests(run: Run) -> None:
    """Runs the tests that carry the marker ``cuda``."""
    report = run.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command += ["--timeout=100"]
    found = run.command("tests", command, "tests.log", HYENA_REQUIRE_CUDA="0" if run.args.dry_run else "1")
    found["tail"] = tail(run.folder / "tests.log", 15)
    if report.exists():
        suite = ElementTree.parse(report).getroot().find("testsuite")
        if suite is not None:
            found |= {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
            found["failed"] = [
                f"{case.get('classname')}::{case.get('name')}: {(bad.get('message') or '')[:200]}"
                for case in suite.iter("testcase")
                for bad in [*case.findall("failure"), *case.findall("error")]
            ][:40]
    run.stages["tests"] = found


def measure(run: Run, wanted: list[str]) -> None:
    """Runs sections in one process, and in another what is left after one that fails or takes too long."""
    left = list(wanted)
    while left:
        command = [sys.executable, str(HERE / "gpu_measurements.py"), *(["--dry-run"] if run.args.dry_run else [])]
        command += [str(run.folder), *left]
        print(f"===== {' '.join(left)}", flush=True)
        environment = os.environ | {"PYTHONPATH": str(INSTALLED), "PYTHONUNBUFFERED": "1"}
        # In a folder where no other hyena is.
        worker = subprocess.Popen(command, cwd=run.folder, env=environment, start_new_session=True)
        done = watch(run, worker, left)
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
            stop(worker)
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
            (place / name).write_text(json.dumps(kept, indent=1) + "\n")
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


def show(lines: list[tuple[str, ...]]) -> None:
    """Prints the table, and how many bars are reached."""
    widths = [max(len(line[i]) for line in lines) for i in range(4)] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths)) + "  " + line[4])
    verdicts = [line[4] for line in lines]
    print(", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "FAIL", "ERROR")))


def plot(path: Path, to: Path) -> None:
    """Draws the record: each panel a section, value by length, bars dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sections = json.loads(path.read_text())["sections"]
    panels = [n for n in ("bandwidth", "flash_fft_conv", "attention", "against_fallback") if n in sections]
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(5.5 * max(1, len(panels)), 4.5), squeeze=False)
    for axis, name in zip(axes[0], panels):
        lines: dict[str, list[tuple[int, float, float | None]]] = {}
        for r in sections[name]["rows"]:
            if r["value"] is not None:
                label, length = r["what"].rsplit(" L=", 1)
                lines.setdefault(label, []).append((int(length), r["value"], r["bar"]))
        for label, points in lines.items():
            (line,) = axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", ms=3, label=label)
            bars = [(p[0], p[2]) for p in points if p[2] is not None]
            if bars:
                axis.plot(*zip(*bars), ls="--", lw=0.8, color=line.get_color())
        unit = sections[name]["rows"][0]["unit"]
        axis.set(title=name.replace("_", " "), xlabel="length", ylabel=unit, xscale="log")
        axis.set_xscale("log", base=2)
        if name != "bandwidth":
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    if panels:
        figure.suptitle(sections[panels[0]]["machine"]["device"])
    figure.tight_layout()
    figure.savefig(to, dpi=110)


def main() -> None:
    """Runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="nothing but these stages")
    parser.add_argument("--skip", nargs="+", choices=list(STAGES), default=[], help="all stages but these")
    parser.add_argument("--budget", type=float, default=530, help="seconds for everything together")
    parser.add_argument("--out", type=Path, help="folder that the record, the plot and the logs are copied to")
    parser.add_argument("--commit", help="what is measured, where there is no git to ask")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, at toy sizes")
    args = parser.parse_args()
    stages = [name for name in STAGES if name in (args.only or STAGES) and name not in args.skip]
    if "bandwidth" in stages and "device" not in stages:
        stages.insert(stages.index("bandwidth"), "device")  # whose rates it needs
    run = Run(args)
    if "build" in stages:
        build(run)
    built = run.stages.get("build", {}).get("status", "ok") == "ok"
    if "tests" in stages and built:
        tests(run)
    if built:
        measure(run, [name for name in stages if name in SECTIONS])
    path = record(run)
    show(rows(json.loads(path.read_text())))
    drawn = path.with_suffix(".png")
    try:
        plot(path, drawn)
    except Exception as error:  # no figure is worth the figures
        print(f"no plot: {type(error).__name__}: {error}")
    print(f"wrote {path}")
    if args.out:
        for file in (drawn, run.folder / "build.log", run.folder / "tests.log"):
            if file.exists():
                shutil.copy(file, args.out)
    if not built:
        sys.exit("the build failed:\n" + "\n".join(run.stages["build"].get("tail", [])))


if __name__ == "__main__":
    main()
