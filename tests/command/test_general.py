"""The commands that are not about DNA: report, train, generate of what it trained; and errors."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hyena
from helpers.command import error
from helpers.dna import build
from hyena.checkpoints import save_hyenadna
from hyena.command import main
from hyena.command.characters import CharacterTokenizer, load_characters
from hyena.command.corpus import read_corpus
from hyena.generation import generate_by_rerun
from hyena.genomics import generate, score
from hyena.genomics.records import Record

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = ["--context", "16", "--width", "16", "--layers", "1", "--batch", "4", "--no-plot", "--device", "cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return path


def train(text: Path, out: Path, *more: str, steps: int = 6) -> int:
    return main(["train", str(text), "--out", str(out), "--steps", str(steps), *SMALL, *more])


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert train(text, out, "--overwrite", "--quiet") == 0
    return out


# report


def test_report(capsys: pytest.CaptureFixture) -> None:
    assert main(["report"]) == 0
    said = capsys.readouterr().out
    report = hyena.backend_report().splitlines()[3:]
    assert all(line in said for line in report)
    assert all(len(line.split()) == 3 for line in report), report
    for name in ("hyena", "python", "system", "processor", "cores", "memory", "threads", "instructions", "devices"):
        assert re.search(rf"^{name} +\S", said, re.MULTILINE), name
    assert f"torch {torch.__version__}" in said
    assert main(["report", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hyena"] == hyena.__version__
    assert str(Path.home()) not in json.dumps(found) or str(Path.home()) == "/"


def test_the_command_loads_what_it_needs() -> None:
    code = (
        "import sys; from hyena.command import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({'matplotlib', 'transformers', 'safetensors', 'pandas'} & set(sys.modules)),"
        "'hyena.command.training' in sys.modules, 'hyena.command.jobs' in sys.modules, file=sys.stderr)"
    )
    for given in (["--help"], ["report"], ["train", "--help"]):
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *given],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.stderr == "[] False False\n", given
    assert all(name in subprocess.list2cmdline([done.stdout]) for name in ("--context", "--steps"))


# train


def test_train_learns_and_says_where_things_are(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    more = [each for each in SMALL if each != "--no-plot"]
    given = ["train", str(text), "--out", str(out), "--steps", "60", "--lr", "0.01", "--eval-every", "30", *more]
    assert main(given) == 0
    said = capsys.readouterr()
    assert "fox.txt: 1,620 characters to train on, 180 to validate, 29 different; a model of" in said.out
    assert "step 30: validation loss" in said.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["validation"][-1][0] == 60
    assert metrics["validation_loss"] < 2.5 < metrics["losses"][0]  # log(29) is 3.4
    assert f"validation loss {metrics['validation_loss']:.4f}" in said.out
    for name in ("checkpoint.pt", "metrics.json", "loss.png"):
        assert str(out / name) in said.out
        assert (out / name).stat().st_size > 500
    assert f"hyena generate --model {out}" in said.out


def test_train_goes_on_bit_for_bit(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from hyena.command.training import Run

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(text, whole, "--save-every", "2") == 0
    real, steps = Run.advance, []

    def stopped(self: Run) -> float:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(self.step)
        return real(self)

    monkeypatch.setattr(Run, "advance", stopped)
    assert train(text, parts, "--save-every", "2") == 130
    assert f"the same command goes on from {parts}" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(text, parts, "--save-every", "2") == 0
    assert f"going on from {parts / 'checkpoint.pt'} after step 2 of 6" in capsys.readouterr().out
    a, b = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, parts))
    assert a["losses"] == b["losses"]
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])


def test_train_on_dna_and_score_with_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "a.fa"
    file.write_text("".join(f">r{i}\n{'ACGTTGCA' * 10}\n" for i in range(10)))
    assert train(file, tmp_path / "run", "--quiet") == 0
    model, tokenizer = load_characters(tmp_path / "run" / "checkpoint.pt", torch.device("cpu"), None)
    assert tokenizer.vocabulary == "\nACGT"
    short = tmp_path / "b.fa"
    short.write_text(">one\nACGTAC\n")
    out = tmp_path / "s.tsv"
    assert main(["score", "--model", str(tmp_path / "run"), str(short), "--output", str(out)]) == 0
    (want,) = score(model, ["ACGTAC"], tokenizer=tokenizer)
    values = dict(zip(*(line.split("\t") for line in out.read_text().splitlines()), strict=True))
    assert float(values["log_likelihood"]) == pytest.approx(want.log_likelihood, rel=1e-5)
    short.write_text(">one\nACGTNC\n")
    said = error(capsys, ["score", "--model", tmp_path / "run", short, "--output", tmp_path / "t.tsv"])
    assert "'N' at position 5" in said
    assert "is not one of the 5 that the model has seen" in said


def test_damaged_gzip_is_one_line(tmp_path: Path) -> None:
    """Cut anywhere, or any byte wrong: an error that names the file, or (the header's date, say) the whole text."""
    text = "".join(chr(97 + i * i % 26) for i in range(400))
    whole, file = gzip.compress(text.encode()), tmp_path / "x.txt.gz"
    damaged = [whole[:n] for n in range(1, len(whole))]
    damaged += [whole[:n] + bytes([whole[n] ^ 255]) + whole[n + 1 :] for n in range(len(whole))]
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            found = read_corpus(file, 8)
        except ValueError as error:
            refused += "x.txt.gz" in str(error)
        else:
            got = torch.cat([found.train, found.validation]).tolist()
            assert "".join(found.vocabulary[i] for i in got) == text
    assert refused > len(damaged) - 12


def test_what_cannot_be_trained(text: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture) -> None:
    def said(file: Path, *more: str) -> str:
        return error(capsys, ["train", file, "--out", tmp_path / "o", *SMALL, *more])

    assert "No such file" in said(tmp_path / "no.txt")
    assert "is a folder" in said(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"abc\xe9" * 100)
    assert "latin.txt is not UTF-8 text: byte 3 is 0xe9" in said(tmp_path / "latin.txt")
    (tmp_path / "short.txt").write_text("abc" * 20)
    assert "short.txt is too short: 60 characters are 54 to train on and 6" in said(tmp_path / "short.txt")
    (tmp_path / "cut.txt.gz").write_bytes(b"no gzip")
    assert "is no whole gzip file" in said(tmp_path / "cut.txt.gz")
    assert "--steps must be at least 1, got 0" in said(text, "--steps", "0")
    assert "--lr must be more than 0, got nan" in said(text, "--lr", "nan")
    assert "--dropout must lie in [0, 1), got 1.0" in said(text, "--dropout", "1")
    assert "--save-every must be at least 1, got 0" in said(text, "--save-every", "0")
    assert not (tmp_path / "o").exists()
    other = error(capsys, ["train", text, "--out", trained, *SMALL, "--steps", "7"])
    assert f"{trained / 'checkpoint.pt'} is of a run with steps 6 (now 7)" in other
    assert "mlp must be one of gelu, gelu_tanh, geglu, swiglu, got 'relu'" in said(text, "--mlp", "relu")
    saved = torch.load(trained / "checkpoint.pt")
    assert saved["identity"].pop("mlp") == "swiglu"
    (tmp_path / "early").mkdir()
    torch.save(saved, tmp_path / "early" / "checkpoint.pt")
    other = error(capsys, ["train", text, "--out", tmp_path / "early", *SMALL, "--steps", "6"])
    assert "is of a run with mlp gelu (now swiglu)" in other
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "checkpoint.pt").write_bytes(b"no checkpoint")
    assert "checkpoint.pt is no checkpoint of this command" in said(text)
    assert train(text, tmp_path / "o", "--overwrite") == 0


def test_windows_of_the_corpus(text: Path) -> None:
    from hyena.command.corpus import windows

    corpus = read_corpus(text, 16)
    assert "".join(corpus.vocabulary[i] for i in torch.cat([corpus.train, corpus.validation])) == TEXT
    x, y = windows(corpus.train, 16, 1000)
    assert torch.equal(x.flatten(), corpus.train[: x.numel()])
    assert torch.equal(y.flatten(), corpus.train[1 : x.numel() + 1])
    assert windows(corpus.train, 16, 7)[0].shape == (7, 16)


# generate


def test_text_on_the_terminal(trained: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    given = ["generate", "--model", str(trained), "--prompt", "the q", "--temperature", "0"]
    assert main([*given, "--length", "8"]) == 0
    model, tokenizer = load_characters(trained / "checkpoint.pt", torch.device("cpu"), None)
    want = generate_by_rerun(model, tokenizer.encode("the q")[None], 8, window=16, temperature=0)[0]
    assert capsys.readouterr().out == tokenizer.decode(want) + "\n"
    assert main([*given, "--length", "40"]) == 0  # beyond the context of 16
    assert len(capsys.readouterr().out) == 5 + 40 + 1
    assert main([*given[:3], "--length", "5", "--letters", "ab", "--samples", "2"]) == 0
    both = capsys.readouterr()
    assert re.fullmatch(r"[ab]{5}\n[ab]{5}\n", both.out)
    assert both.err == "== prompt1, 1 of 2\n== prompt1, 2 of 2\n"
    file = trained / "checkpoint.pt"
    assert main(["generate", "--model", str(file), "--length", "3", "--dtype", "float64"]) == 0


def test_text_of_other_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """examples/train.py's; and a table of a model of characters."""
    config = hyena.models.CausalLMConfig(vocab_size=3, l_max=12, d_model=8, num_layers=1)
    model = hyena.models.CausalLM(config)
    file = tmp_path / "shakespeare.pt"
    torch.save({"config": config.to_dict(), "model": model.state_dict(), "vocabulary": "abc"}, file)
    assert main(["generate", "--model", str(file), "--length", "3", "--prompt", "ab", "--letters", "c"]) == 0
    assert capsys.readouterr().out == "abccc\n"
    out = tmp_path / "g.tsv"
    given = ["generate", "--model", str(file), "--length", "3", "--prompt", "ab", "--letters", "c", "--quiet"]
    assert main([*given, "--output", str(out)]) == 0
    assert out.read_text().splitlines()[1].split("\t")[-1] == "ccc"


def test_text_of_a_pretrained_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What Trainer leaves: a model for the Auto classes, and a tokenizer of pieces of words and of bytes."""
    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    from hyena.integrations.auto import HyenaConfig, HyenaForCausalLM

    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    torch.manual_seed(0)
    model = HyenaForCausalLM(HyenaConfig(vocab_size=len(tokenizer), l_max=64, d_model=16, num_layers=1)).eval()
    model.save_pretrained(tmp_path)
    given = ["generate", "--model", str(tmp_path), "--prompt", "the quick ", "--length", "12", "--temperature", "0"]
    assert "no tokenizer (tokenizer.json" in error(capsys, given)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("the quick ", return_tensors="pt").input_ids
    want = tokenizer.decode(model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)[0])
    capsys.readouterr()
    assert main(given) == 0
    assert capsys.readouterr().out == want + "\n"
    assert "give --prompt" in error(capsys, [*given[:3], "--length", "3"])
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("HyenaForCausalLM", "HyenaForMaskedLM"))
    assert "text is written by a HyenaForCausalLM" in error(capsys, given)


def test_dna_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = build("dna", torch.float32)
    save_hyenadna(model, tmp_path)
    given = ["generate", "--model", str(tmp_path), "--prompt", "ACGT", "--length"]
    assert main([*given, "7", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "ACGT" + generate(model.eval(), ["ACGT"], 7, temperature=0)[0] + "\n"
    limit = model.config.l_max
    assert f"l_max={limit}" in error(capsys, [*given, limit])
    assert main([*given, str(limit), "--window", "8"]) == 0  # beyond the context, as asked for
    assert re.fullmatch(rf"ACGT[ACGT]{{{limit}}}\n", capsys.readouterr().out)


def test_what_cannot_be_written(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "does not exist" in error(capsys, ["generate", "--model", tmp_path / "no", "--length", "4"])
    given = ["generate", "--model", trained, "--length", "4"]
    assert "record 'prompt1': 'Q' at position 1" in error(capsys, [*given, "--prompt", "Q"])
    assert "--samples must be at least 1" in error(capsys, [*given, "--samples", "0"])
    assert f"seed must fit 64 bits, got {10**30}" in error(capsys, [*given, "--seed", 10**30])
    assert "top_k" in error(capsys, [*given, "--top-k", "0"])
    assert "max_new_tokens must be" in error(capsys, [*given[:3], "--length", "0"])
    assert "--window 4 is for text" in error(capsys, [*given, "--window", "4", "--output", tmp_path / "x.tsv"])
    bad = tmp_path / "bad.pt"
    torch.save({"config": {}, "model": {}}, bad)
    assert "bad.pt has no vocabulary" in error(capsys, ["generate", "--model", bad, "--length", "4"])
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)
    torch.save({**saved, "vocabulary": "ab"}, bad)
    assert "a vocabulary of 2 characters and a model of 29" in error(
        capsys, ["generate", "--model", bad, "--length", "4"]
    )
    name = "norm.weight"
    torch.save({**saved, "model": {**saved["model"], name: torch.zeros(2)}}, bad)
    assert "does not fit its own config" in error(capsys, ["generate", "--model", bad, "--length", "4"])
    broken = torch.full_like(saved["model"][name], torch.nan)
    torch.save({**saved, "model": {**saved["model"], name: broken}}, bad)
    assert "not finite" in error(capsys, ["generate", "--model", bad, "--length", "4"])
    (tmp_path / "a.fa").write_text(">one\ntheq\n")
    given = ["classify", "--model", trained, tmp_path / "a.fa", "--output", tmp_path / "c.tsv"]
    assert "CausalLM" in error(capsys, given)


def test_options_that_do_nothing_are_refused(trained: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["generate", "--model", trained, "--prompt", "the", "--length", "2"]
    assert "--alphabet xyz is of the records of FASTA files" in error(capsys, [*given, "--alphabet", "xyz"])
    assert "--iupac-to-n is of the records of FASTA files" in error(capsys, [*given, "--iupac-to-n"])


@pytest.mark.parametrize("device", ["cuda:77", "nonsense"])
def test_devices_that_are_not_there(
    device: str, text: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for given in (
        ["generate", "--model", trained, "--prompt", "the", "--length", "2"],
        ["train", text, "--out", tmp_path / "o", *SMALL],
        ["bench", "--out", tmp_path / "b", "--lengths", "16"],
    ):
        assert f"--device {device}: " in error(capsys, [*given, "--device", device])


def test_a_checkpoint_without_settings(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)
    torch.save({**saved, "config": {}}, tmp_path / "checkpoint.pt")
    said = error(capsys, ["generate", "--model", tmp_path, "--prompt", "the", "--length", "2"])
    assert "needs l_max, vocab_size, got mlp" in said


def test_character_tokenizer() -> None:
    tokenizer = CharacterTokenizer("\nabé")
    assert tokenizer.encode("éa\n").tolist() == [3, 1, 0]
    assert tokenizer.decode(tokenizer.encode("abé")) == "abé"
    with pytest.raises(ValueError, match="'x' at position 2"):
        tokenizer.encode("ax")
    with pytest.raises(ValueError, match="cannot be decoded"):
        tokenizer.decode([4])
    with pytest.raises(ValueError, match="different characters"):
        CharacterTokenizer("aa")
    assert Record("r", "ab").sequence == "ab"
