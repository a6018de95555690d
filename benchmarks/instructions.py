"""Counts the instructions of the CUDA kernels' loops, in machine code: no GPU needed, but nvcc and nvdisasm.

    python benchmarks/instructions.py [convolve backward split …] [--arch 90]

Compiles ``csrc/cuda/kernels/kernels_<name>.cu`` for one architecture and prints the innermost large loops of every
kernel in the order of the code: all instructions, and of these arithmetic in float32, accesses to shared, to global and
to local memory (spilled registers). A loop over butterflies of radix 16 is for 16 points; one with branches counts all
of them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "src" / "hyena" / "csrc" / "cuda" / "kernels"
KINDS = {
    "float32": ("FFMA", "FADD", "FMUL"),
    "shared": ("LDS", "STS"),
    "global": ("LDG", "STG", "LD.", "ST."),
    "local": ("LDL", "STL"),
}
LEAST = 60  # instructions of a loop worth a line

Instruction = tuple[str, str]  # opcode and operands


def disassembled(name: str, arch: str) -> str:
    """The machine code of a source file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = ["-std=c++17", "-O3", f"-arch=sm_{arch}", "--expt-relaxed-constexpr", "--extended-lambda", "-cubin"]
        subprocess.run(["nvcc", *flags, "-o", str(cubin), str(SOURCES / f"kernels_{name}.cu")], check=True)
        return subprocess.run(["nvdisasm", "-c", str(cubin)], check=True, capture_output=True, text=True).stdout


def functions(code: str) -> tuple[dict[str, list[Instruction]], dict[str, int]]:
    """The instructions of each function, and where in its function each label stands."""
    found: dict[str, list[Instruction]] = {}
    labels: dict[str, int] = {}
    name = ""
    for line in code.splitlines():
        if at := re.match(r"\.text\.(\S+):", line):
            name = at.group(1)
            found[name] = []
        elif at := re.match(r"(\.L_x_\d+):", line):
            labels[at.group(1)] = len(found[name])
        elif name and (at := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.]+)(.*?);", line)):
            found[name].append((at.group(1), at.group(2)))
    return found, labels


def loops(code: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """The bodies of the large loops that have no other large loop inside."""
    spans = []
    for i, (opcode, operands) in enumerate(code):
        target = re.search(r"(\.L_x_\d+)", operands) if opcode.startswith("BRA") else None
        if target and i - labels.get(target.group(1), i) >= LEAST:
            spans.append((labels[target.group(1)], i + 1))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [code[begin:end] for begin, end in sorted(inner)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["convolve"])
    parser.add_argument("--arch", default="90")
    args = parser.parse_args()
    for name in args.names:
        found, labels = functions(disassembled(name, args.arch))
        for function, code in found.items():
            print(f"{function}\n{'all':>8}" + "".join(f"{kind:>9}" for kind in KINDS))
            for body in loops(code, labels):
                counts = [sum(opcode.startswith(starts) for opcode, _ in body) for starts in KINDS.values()]
                print(f"{len(body):8}" + "".join(f"{count:9}" for count in counts))


if __name__ == "__main__":
    main()
