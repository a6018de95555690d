"""Prints registers and spills of every kernel and architecture out of a build log with ``-Xptxas -v``.

python tests/csrc/ptxas_report.py build.log
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# run<Program, threads, blocks>: the program's name follows its length in the mangled one.
NAME = re.compile(r"3runINS0_(\d+)(\w+)")


def readable(mangled: str) -> str:
    """``Spectrum<0> 512`` for the kernel that runs ``Spectrum<false>`` with up to 512 threads.

    ``Convolve of 8x16x16 128, 3 taps`` for one of a fixed transform, number of threads and number of taps.
    """
    found = NAME.search(mangled)
    if found is None:
        return mangled
    name, rest = found[2][: int(found[1])], found[2][int(found[1]) :]
    flags = re.match(r"ILb(\d)E", rest)
    if fixed := re.search(r"(Pair)?KindINS0_14FixedTransformILi\d+EJ((?:Li\d+E)+)EEELi(\d+)ELi(\d+)E", rest):
        points, pair = "x".join(re.findall("[0-9]+", fixed[2])), ", pair" if fixed[1] else ""
        return f"{name} of {points} {fixed[3]}, {fixed[4]} taps{pair}"
    threads = re.search(r"Li(\d+)ELi", rest)
    return name + (f"<{flags[1]}>" if flags else "") + (f" {threads[1]}" if threads else "")


def main(log: Path) -> None:
    """Reads the log and prints the table; fails if there is no kernel in it."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    kernel = architecture = spills = ""
    for line in log.read_text().splitlines():
        if entry := ENTRY.search(line):
            kernel, architecture = readable(entry[1]), entry[2]
        elif counts := SPILLS.search(line):
            spills = f"+{counts[2]}" if counts[2] != "0" else ""
        elif used := REGISTERS.search(line):
            found[kernel][architecture] = used[1] + spills
    if not found:
        sys.exit(f"no kernels in {log}")
    architectures = sorted({a for row in found.values() for a in row}, key=lambda a: int(re.sub(r"\D", "", a)))
    print("registers of each thread, + bytes spilled")
    print(f"{'kernel':52}" + "".join(f"{a:>12}" for a in architectures))
    for name in sorted(found):
        print(f"{name:52}" + "".join(f"{found[name].get(a, '-'):>12}" for a in architectures))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
