"""The command ``hyena``: what it writes, killed and started again at any time, and what it says of bad input."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.command import error
from helpers.dna import build
from hyena.checkpoints import load_hyenadna, save_hyenadna
from hyena.command import main
from hyena.genomics import classify, embed, generate, read_fasta, score
from hyena.models import HyenaDNA

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_hyenadna(build("dna", torch.float32), folder)
    return folder


@pytest.fixture
def model(model_folder: Path) -> HyenaDNA:
    return load_hyenadna(model_folder, head="lm").eval()


def fasta(path: Path, number: int = 40) -> Path:
    """Records of 2 to 60 letters."""
    draw = random.Random(number)
    rows = [f">r{i}\n{''.join(draw.choices('ACGTN', k=draw.randint(2, 60)))}\n" for i in range(number)]
    content = "".join(rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> list[dict[str, str]]:
    names, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_score(tmp_path: Path, model_folder: Path, model: HyenaDNA, capsys: pytest.CaptureFixture) -> None:
    files = [fasta(tmp_path / "a.fa", 9), fasta(tmp_path / "b.fa.gz", 3)]
    out = tmp_path / "scores.tsv"
    given = ["score", "--model", str(model_folder), "--strands", "both", "--output", str(out)]
    assert main([*given, *map(str, files)]) == 0
    assert capsys.readouterr().err == f"{out}: 12 rows, complete\n"
    records = [record for file in files for record in read_fasta(file)]
    want = score(model, records, strands="both")
    rows = read(out)
    assert [(row["file"], row["record"]) for row in rows] == [(r.file, r.name) for r in records]
    for row, each, record in zip(rows, want, records, strict=True):
        assert int(row["letters"]) == len(record)
        assert int(row["predicted"]) == len(record) - 1
        for name, value in (
            ("log_likelihood", each.log_likelihood),
            ("mean", each.mean),
            ("log_likelihood_forward", each.strands["forward"]),
            ("log_likelihood_reverse", each.strands["reverse"]),
        ):
            assert float(row[name]) == pytest.approx(value, rel=1e-5)
    # Again: nothing is left to do, and nothing is done.
    before = out.stat().st_mtime_ns
    assert main([*given, *map(str, files)]) == 0
    assert out.stat().st_mtime_ns == before


def test_embed(tmp_path: Path, model_folder: Path, model: HyenaDNA) -> None:
    file, out = fasta(tmp_path / "a.fa", 5), tmp_path / "e.tsv"
    given = ["embed", "--model", str(model_folder), "--layers", "1,norm", "--pooling", "last", str(file), "--quiet"]
    assert main([*given, "--output", str(out)]) == 0
    want = embed(model, list(read_fasta(file)), [1, "norm"], pooling="last")
    rows = read(out)
    assert [(row["record"], row["layer"]) for row in rows] == [(f"r{i}", n) for i in range(5) for n in ("1", "norm")]
    got = torch.tensor([[float(row[f"e{i}"]) for i in range(16)] for row in rows]).view(5, 2, 16)
    torch.testing.assert_close(got, torch.stack([want[1], want["norm"]], dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"pooling": "last", "head_bias": False}], ids=["original", "hf"])
def test_embeddings_of_a_classifier(changes: dict[str, Any], tmp_path: Path) -> None:
    classifier = build("dna", torch.float32, head="classes", **changes)
    save_hyenadna(classifier, tmp_path / "model")
    file, out = fasta(tmp_path / "a.fa", 3), tmp_path / "e.tsv"
    assert main(["embed", "--model", str(tmp_path / "model"), str(file), "--output", str(out), "--quiet"]) == 0
    got = torch.tensor([[float(row[f"e{i}"]) for i in range(16)] for row in read(out)])
    torch.testing.assert_close(got, embed(classifier, list(read_fasta(file)))["norm"], rtol=1e-5, atol=1e-5)


def test_classify(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    classifier = build("dna", torch.float32, head="classes", num_classes=3)
    save_hyenadna(classifier, tmp_path / "model")
    file, out = fasta(tmp_path / "a.fa", 9), tmp_path / "c.tsv"
    given = ["classify", "--model", str(tmp_path / "model"), str(file), "--strands", "both", "--max-tokens", "70"]
    assert main([*given, "--output", str(out), "--quiet"]) == 0
    got = torch.tensor([[float(row[f"p{i}"]) for i in range(3)] for row in read(out)])
    logits = classify(classifier, list(read_fasta(file)), strands="both")
    torch.testing.assert_close(got, logits.exp() / logits.exp().sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    # A head that would start at random is no answer.
    given[2] = str(model_folder)
    assert "head='lm' and gives no class logits" in error(capsys, [*given, "--output", tmp_path / "d.tsv"])
    weights = load_file(tmp_path / "model" / "model.safetensors")
    backbone = {name: t for name, t in weights.items() if not name.startswith("head.")}
    save_file(backbone, tmp_path / "model" / "model.safetensors")
    given[2] = str(tmp_path / "model")
    assert "has no layer of classes" in error(capsys, [*given, "--output", tmp_path / "d.tsv"])


def test_generate(tmp_path: Path, model_folder: Path, model: HyenaDNA) -> None:
    given = ["generate", "--model", str(model_folder), "--length", "7", "--quiet"]
    out = tmp_path / "g.tsv"
    prompts = ["--prompt", "ACGT", "--prompt", "GG"]
    assert main([*given, *prompts, "--temperature", "0", "--output", str(out)]) == 0
    rows = read(out)
    assert [row["record"] for row in rows] == ["prompt1", "prompt2"]
    assert [row["sequence"] for row in rows] == generate(model, ["ACGT", "GG"], 7, temperature=0)
    out = tmp_path / "g.fa"
    file = fasta(tmp_path / "p.fa", 3)
    assert main([*given, str(file), "--samples", "2", "--seed", "5", "--output", str(out)]) == 0
    written = list(read_fasta(out))
    assert [record.name for record in written] == ["r0_1", "r0_2", "r1_1", "r1_2", "r2_1", "r2_2"]
    assert all(len(record) == 7 and set(record.sequence) <= set("ACGT") for record in written)
    repeated = [record for record in read_fasta(file) for _ in range(2)]
    assert [record.sequence for record in written] == generate(model, repeated, 7, seed=5)


def test_as_a_module(tmp_path: Path, model_folder: Path) -> None:
    file, out = fasta(tmp_path / "a.fa", 2), tmp_path / "s.tsv"
    given = ["score", "--model", str(model_folder), str(file), "--output", str(out)]
    done = subprocess.run([sys.executable, "-m", "hyena", *given], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{out}: 2 rows, complete\n")
    assert len(read(out)) == 2


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


COMMANDS: dict[str, list[str]] = {
    "score": ["score", "--strands", "both"],
    "embed": ["embed", "--layers", "0,norm"],
    "generate": ["generate", "--length", "3", "--samples", "2", "--top-k", "3"],
}


class Kill(BaseException):
    """Stands for a kill: nothing catches it."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> bool:
    """Runs until the call of this number that makes something lasting; whether there were as many."""
    calls = 0

    def counted(real: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                raise Kill
            result = real(*arguments, **keywords)
            if calls == number:
                raise Kill
            return result

        return call

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", counted(os.fsync, False))
        patched.setattr(os, "replace", counted(os.replace, number % 2 == 0))
        patched.setattr(Path, "unlink", counted(Path.unlink, number % 2 == 0))
        try:
            run()
        except Kill:
            return True
    return False


@pytest.mark.parametrize(("kind", "ending"), [("score", "tsv"), ("embed", "tsv"), ("generate", "fa")])
def test_killed_at_every_point(
    kind: str, ending: str, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fasta(tmp_path / "a.fa", 10)
    given = [*COMMANDS[kind], "--model", str(model_folder), str(file), "--quiet", "--max-tokens", "20"]
    whole = tmp_path / f"whole.{ending}"
    assert main([*given, "--output", str(whole)]) == 0
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        out = folder / f"out.{ending}"
        run = [*given, "--output", str(out)]
        if not killed_at(number, monkeypatch, lambda run=run: main(run)):
            break
        # A write that was under way is cut off anywhere.
        part = out.with_name(out.name + ".part")
        if part.exists() and number % 3:
            os.truncate(part, max(part.stat().st_size - 5 * (number % 3), 0))
        assert main(run) == 0
        assert out.read_bytes() == whole.read_bytes(), number
        assert sorted(f.name for f in folder.iterdir()) == [out.name, out.name + ".run.json"]
    assert number > 5


def test_killed_for_real(tmp_path: Path, model_folder: Path) -> None:
    """SIGKILL at random times, three times, and then a run to the end."""
    file = fasta(tmp_path / "a.fa", 150)
    given = ["score", "--model", str(model_folder), str(file), "--quiet", "--max-tokens", "32", "--output"]
    whole, out = tmp_path / "whole.tsv", tmp_path / "out.tsv"
    code = "import sys; from hyena.command import main; print(flush=True); sys.exit(main(sys.argv[1:]))"

    def started(path: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *given, str(path)]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
        process.stdout.readline()  # everything is imported
        return process

    process, start = started(whole), time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - start
    draw, lengths = random.Random(0), [0]
    for _ in range(3):
        process = started(out)
        try:
            process.wait(draw.uniform(0.2, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        part = tmp_path / "out.tsv.part"
        lengths.append(part.stat().st_size if part.exists() else len(whole.read_bytes()) if out.exists() else 0)
    assert lengths == sorted(lengths)  # what was finished is kept
    assert started(out).wait() == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (">a\nACGT\n>b\n", ", line 3: record 'b' is empty; expected letters on the lines after its header"),
        (">a\nACGT\n>b\nACXT\n", ", line 4: record 'b' has 'X' in column 3; expected only letters of ACGTN"),
        ("ACGT\n", ", line 1: expected a header, a line that starts with '>', got 'ACGT'"),
        (">a\nacgt\n", "; upper=True (--upper) takes lower-case letters"),
        (f">a\nACGT\n>b\n{'A' * 66}\n", ", line 3: record 'b' has 66 letters, this model's context is l_max=64"),
        (">a\nA\n", ", line 1: record 'a' has 1 letter, which nothing comes before"),
    ],
)
def test_bad_records_are_named_before_anything_is_computed(
    content: str, says: str, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    file, out = tmp_path / "x.fa", tmp_path / "s.tsv"
    file.write_text(content)
    said = error(capsys, ["score", "--model", model_folder, file, "--output", out])
    assert said.startswith(f"hyena: error: {file}")
    assert says in said
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x.fa"]


def test_other_errors(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    file, out = fasta(tmp_path / "a.fa", 3), tmp_path / "s.tsv"
    given = ["score", "--model", model_folder, file]
    assert "No such file" in error(capsys, ["score", "--model", model_folder, tmp_path / "no.fa", "--output", out])
    assert "does not exist" in error(capsys, ["score", "--model", tmp_path / "no", file, "--output", out])
    assert "ends in one of .tsv, .parquet" in error(capsys, [*given, "--output", tmp_path / "s.csv"])
    assert "a file is given twice" in error(capsys, [*given, file, "--output", out])
    assert "--alphabet cannot have E" in error(capsys, [*given, "--alphabet", "ACGTNE", "--output", out])
    assert "no complement" in error(capsys, [*given, "--alphabet", "ACGTNE", "--strands", "both", "--output", out])
    assert "max_tokens must be" in error(capsys, [*given, "--max-tokens", "0", "--output", out])
    assert "layers must be" in error(capsys, ["embed", "--model", model_folder, file, "--layers", "9", "--output", out])
    generate_given = ["generate", "--model", model_folder, "--length", "3", "--output", out]
    assert "give FASTA files, or --prompt" in error(capsys, generate_given)
    assert "not both" in error(capsys, [*generate_given, file, "--prompt", "ACGT"])
    assert "'X' at position 2" in error(capsys, [*generate_given, "--prompt", "AX"])
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no model that is known here" in error(capsys, ["score", "--model", tmp_path, file, "--output", out])
    assert not out.exists()


def test_other_settings_and_changed_inputs_are_refused(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    file, out = fasta(tmp_path / "a.fa", 3), tmp_path / "s.tsv"
    given = ["score", "--model", model_folder, file, "--output", out]
    assert main([str(each) for each in given]) == 0
    first = out.read_bytes()
    assert "strands: 'forward' then, 'both' now" in error(capsys, [*given, "--strands", "both"])
    file.write_text(file.read_text() + ">more\nACGT\n")
    assert "inputs: " in error(capsys, given)
    assert out.read_bytes() == first
    assert main([str(each) for each in [*given, "--overwrite"]]) == 0
    assert out.read_bytes().startswith(first)
    assert len(read(out)) == 4


def test_letters_that_are_taken_when_asked_for(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nacRTYnA\n")
    (tmp_path / "b.fa").write_text(">a\nACNTNNA\n")
    for name, options in (("a", ["--upper", "--iupac-to-n"]), ("b", [])):
        given = ["score", "--model", str(model_folder), str(tmp_path / f"{name}.fa"), *options]
        assert main([*given, "--output", str(tmp_path / f"{name}.tsv"), "--quiet"]) == 0
    got, want = (read(tmp_path / f"{name}.tsv")[0]["log_likelihood"] for name in "ab")
    assert got == want


def test_too_little_memory_and_an_error_on_the_way(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is kept."""
    given = ["score", "--model", str(model_folder), str(fasta(tmp_path / "a.fa", 40)), "--max-tokens", "40"]
    given += ["--output", str(tmp_path / "s.tsv")]
    real, calls = HyenaDNA.forward, []

    def forward(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(HyenaDNA, "forward", forward)
        said = error(capsys, given)
    assert said == "hyena: error: CUDA out of memory; less than --max-tokens 40 takes less memory\n"
    done = (tmp_path / "s.tsv.part").read_bytes()
    assert done.count(b"\n") > 2
    assert main(given) == 0
    assert (tmp_path / "s.tsv").read_bytes().startswith(done)


def test_the_console_script() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nhyena = "hyena.command:main"\n' in project


def test_pieces(tmp_path: Path, model_folder: Path, model: HyenaDNA, capsys: pytest.CaptureFixture) -> None:
    sequence = "".join(random.Random(0).choices("ACGT", k=150))
    (tmp_path / "a.fa").write_text(f">chr\n{sequence}\n>short\nACGT\n")
    given = ["score", "--model", str(model_folder), str(tmp_path / "a.fa"), "--output", str(tmp_path / "s.tsv")]
    assert "--window" in error(capsys, given)
    assert "give --window, too" in error(capsys, [*given, "--step", "9"])
    assert "leave letters out" in error(capsys, [*given, "--window", "64", "--step", "65"])
    assert main([*given, "--window", "64", "--step", "40"]) == 0
    rows = read(tmp_path / "s.tsv")
    assert [row["record"] for row in rows] == ["chr:1-64", "chr:41-104", "chr:81-144", "chr:87-150", "short:1-4"]
    want = score(model, [sequence[:64], sequence[40:104], sequence[80:144], sequence[86:], "ACGT"])
    assert [float(row["log_likelihood"]) for row in rows] == pytest.approx([s.log_likelihood for s in want], rel=1e-5)


def test_an_interrupt(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = fasta(tmp_path / "a.fa", 40), tmp_path / "s.tsv"
    given = ["score", "--model", str(model_folder), str(file), "--output", str(out), "--max-tokens", "40"]
    real, calls = HyenaDNA.forward, []

    def forward(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(HyenaDNA, "forward", forward)
        assert main(given) == 130
    assert "the same command goes on" in capsys.readouterr().err
    done = (tmp_path / "s.tsv.part").read_bytes().count(b"\n") - 1
    assert 0 < done < 40
    assert main(given) == 0
    assert [row["record"] for row in read(out)] == [f"r{i}" for i in range(40)]
