"""The main job: training on Shakespeare, killed and resumed, and what it says to files it cannot use."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"
TINY = ["--layers", "1", "--width", "16", "--context", "8", "--heads", "2", "--threads", "1", "--sample", "20"]


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLE))
    threads = torch.get_num_threads()
    yield
    sys.path.remove(str(EXAMPLE))
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of words, 17 different characters."""
    generator = torch.Generator().manual_seed(0)
    words = ["the", "quick", "brown", "fox", "sees", "ÆØ", "now"]
    chosen = torch.randint(len(words), (400,), generator=generator).tolist()
    path = tmp_path / "words.txt"
    path.write_text(" ".join(words[i] for i in chosen), encoding="utf-8")
    return path


def run(*arguments: object) -> None:
    from train import main

    main([*TINY, *map(str, arguments)])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("mixer", ["hyena", "attention"])
def test_what_a_run_leaves_behind(mixer: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    run("--mixer", mixer, "--data", text, "--out", out, "--steps", 30, "--seed", 3, "--eval-every", 20, "--lr", 0.01)
    found = json.loads((out / "metrics.json").read_text())
    assert found["seed"] == found["settings"]["seed"] == 3
    assert found["settings"]["mixer"] == mixer
    assert found["model"]["mixer"] == {"hyena": "HyenaOperator", "attention": "Attention"}[mixer]
    assert found["settings"]["lr"] == 0.01
    assert found["steps"] == found["settings"]["steps"] == 30
    assert found["data"]["vocabulary"] == len(set(text.read_text(encoding="utf-8")))
    assert found["tokens_per_second"] > 0
    assert found["parameters"] == sum(group["parameters"] for group in found["optimizer"])
    assert [step for step, _ in found["validation"]["history"]] == [20, 30]
    assert found["validation_loss"] == found["validation"]["history"][-1][1] < math.log(found["data"]["vocabulary"])
    png = (out / "loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(png) > 5000
    said = capsys.readouterr().out
    for name in ("checkpoint.pt", "loss.png", "metrics.json"):
        assert str(out / name) in said
    assert len((out / "sample.txt").read_text(encoding="utf-8").strip()) > 0
    assert f"validation loss {found['validation_loss']:.4f}" in said
    assert not list(out.glob("*.tmp"))


def test_loss_is_measured_over_the_whole_validation_split(text: Path, tmp_path: Path) -> None:
    from corpus import load_corpus
    from settings import Settings
    from trainer import Trainer

    corpus = load_corpus(text, context=8)
    trainer = Trainer(Settings(context=8, layers=1, width=16), corpus, torch.device("cpu"))
    content = text.read_text(encoding="utf-8")
    split = int(0.9 * len(content))
    assert corpus.decode(corpus.train) == content[:split]
    held_out = corpus.encode(content[split:])
    losses = []
    for start in range(0, len(held_out) - 8, 8):
        logits = trainer.model.eval()(held_out[None, start : start + 8])
        losses += F.cross_entropy(logits[0], held_out[start + 1 : start + 9], reduction="none").tolist()
    assert trainer.evaluate() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert trainer.validation_losses[-1][0] == 0
    assert len(held_out) - 8 <= len(losses) < len(held_out)


def test_killed_and_resumed_equals_uninterrupted(text: Path, tmp_path: Path) -> None:
    common = ["--data", text, "--steps", 150, "--dropout", 0.1, "--save-every", 7, "--eval-every", 50]
    run(*common, "--out", tmp_path / "whole")
    command = [sys.executable, EXAMPLE / "train.py", *TINY, *common, "--out", tmp_path / "cut"]
    checkpoint = tmp_path / "cut" / "checkpoint.pt"
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < step < 150
    run(*common, "--out", tmp_path / "cut")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut"))
    assert cut["validation"]["history"] == whole["validation"]["history"]
    assert cut["training_loss"] == whole["training_loss"]
    assert (tmp_path / "cut" / "sample.txt").read_text() == (tmp_path / "whole" / "sample.txt").read_text()


def test_killed_while_saving_keeps_the_last_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--data", text, "--steps", 20, "--save-every", 5, "--dropout", 0.1]
    run(*common, "--out", tmp_path / "whole")
    real, calls = torch.save, 0

    def dies_in_the_second(state: dict, file) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            file.write(b"half a checkpoint")
            raise KeyboardInterrupt
        real(state, file)

    monkeypatch.setattr(torch, "save", dies_in_the_second)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(*common, "--out", tmp_path / "cut")
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 5
    run(*common, "--out", tmp_path / "cut")
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_samples_again_without_training(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--data", text, "--out", tmp_path, "--steps", 8)
    before = json.loads((tmp_path / "metrics.json").read_text())
    run("--data", text, "--out", tmp_path, "--steps", 8, "--prompt", "quick")
    assert "after step 8 of 8" in capsys.readouterr().out
    assert (tmp_path / "sample.txt").read_text(encoding="utf-8").startswith("quick")
    after = json.loads((tmp_path / "metrics.json").read_text())
    assert after["validation"] == before["validation"]
    assert after["training_seconds"] == before["training_seconds"]
    run("--data", text, "--out", tmp_path, "--steps", 8, "--restart")
    assert "going on" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"only this", "too short: 9 characters leave 1 for validation .* a context of 8 needs 9"),
        (b"caf\xe9 " * 100, "not UTF-8 text: byte 3 is 0xe9"),
        ("folder", "is a folder"),
    ],
)
def test_data_that_cannot_be_used(content: bytes | str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(SystemExit, match=message) as e:
        run("--data", path, "--out", tmp_path / "out", "--steps", 2)
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_the_shortest_text_that_works(tmp_path: Path) -> None:
    # 81 characters: int(72.9) to train on, 9 to validate.
    path = tmp_path / "data.txt"
    path.write_text("ab" * 40 + "a")
    run("--data", path, "--out", tmp_path / "out", "--steps", 2)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["validation"]["windows"] == 1


def test_error_has_an_exit_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "train.py"), "--data", str(tmp_path / "none.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"train.py: {tmp_path / 'none.txt'} does not exist"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--lr", -1], "lr must be a number that is not negative, got -1"),
        (["--mixer", "mamba"], "mixer must be 'hyena' or 'attention', got 'mamba'"),
        (["--mixer", "attention", "--heads", 3], "16 is not a multiple of num_heads=3"),
        (["--threads", 0], "threads must be at least 1, got 0"),
        (["--device", "abacus"], "'abacus' cannot be used here"),
        (["--prompt", "quiz"], r"has no \['z'\]"),
    ],
)
def test_settings_that_cannot_be_used(arguments: list, message: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        run("--data", text, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_says_so(text: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"the loss of step [0-9]+ is nan; a lower --lr may help"):
        run("--data", text, "--out", tmp_path, "--steps", 50, "--lr", 1e38, "--clip", 0)
    assert not (tmp_path / "metrics.json").exists()


def test_other_settings_do_not_overwrite_a_run(text: Path, tmp_path: Path) -> None:
    run("--data", text, "--out", tmp_path, "--steps", 3)
    with pytest.raises(SystemExit, match=r"other settings: seed 0 \(now 1\), steps 3 \(now 4\)"):
        run("--data", text, "--out", tmp_path, "--steps", 4, "--seed", 1)
    text.write_text(text.read_text() + "!")
    with pytest.raises(SystemExit, match="other settings: data"):
        run("--data", text, "--out", tmp_path, "--steps", 3)
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="is not a checkpoint"):
        run("--data", text, "--out", tmp_path, "--steps", 3)


def test_default_folder_tells_settings_apart() -> None:
    from settings import Settings
    from train import DATA, default_out

    outs = [
        default_out(Settings(**changes), data)
        for changes in ({}, {"seed": 1}, {"mixer": "attention"}, {"mixer": "attention", "lr": 0.1})
        for data in (DATA, Path("elsewhere/poems.txt"))
    ]
    assert len(set(outs)) == len(outs)
    assert default_out(Settings(), DATA) == Path("out/shakespeare/hyena-seed0")


def test_default_setting() -> None:
    from corpus import load_corpus
    from settings import Settings
    from train import DATA
    from trainer import Trainer

    corpus = load_corpus(DATA, 64)
    assert len(corpus.vocabulary) == 65
    assert (corpus.train.numel(), corpus.validation.numel()) == (1_003_854, 111_540)
    trainer = Trainer(Settings(), corpus, torch.device("cpu"))
    assert sum(p.numel() for p in trainer.model.parameters()) <= 900_000
    in_groups = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in in_groups} == {id(p) for p in trainer.model.parameters()}
    assert len(in_groups) == len(trainer.parameters)


def test_learning_rate() -> None:
    from settings import Settings

    rates = [1e-3 * Settings().lr_factor(step) for step in range(2000)]
    assert rates[0] == pytest.approx(1e-3 / 101)
    assert rates[99] == pytest.approx(1e-3 * 100 / 101)
    assert rates[100] == max(rates) == 1e-3
    assert rates[1050] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[1999] == pytest.approx(1e-4, rel=1e-4)
    assert [Settings(steps=1).lr_factor(0)] == [1.0]


def test_both_mixers_see_the_same_batches(text: Path) -> None:
    from corpus import load_corpus, random_batch
    from settings import Settings
    from trainer import Trainer

    corpus = load_corpus(text, 8)
    batches = []
    for mixer in ("hyena", "attention"):
        trainer = Trainer(Settings(mixer=mixer, context=8, layers=1, width=16), corpus, torch.device("cpu"))
        trainer.advance()
        batches.append(random_batch(corpus.train, 4, 8, trainer.generator))
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][0][:, 1:], batches[0][1][:, :-1])
