"""The main job and what goes wrong around it: damaged checkpoints, a second run in the folder, senseless options."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shakespeare"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WORDS = "the quick brown fox sees now " * 12
TINY = ["--layers", "1", "--width", "16", "--context", "8", "--heads", "2", "--threads", "1", "--sample", "5"]


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLE))
    threads = torch.get_num_threads()
    yield
    sys.path.remove(str(EXAMPLE))
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def run(*arguments: object) -> None:
    from train import main

    main([*TINY, *map(str, arguments)])


# --- damaged checkpoints ---


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of a run of 6 steps, after 4, and where its text is."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "words.txt").write_text(WORDS)
    run("--data", folder / "words.txt", "--out", folder / "out", "--steps", 6, "--save-every", 4)
    state = torch.load(folder / "out" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 6
    return state


def moments(state: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for held in state["optimizer"]["state"].values():
        held["exp_avg"] = change(held["exp_avg"])


def edited(state: dict[str, Any], *path: Any, to: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    old = state[path[-1]]
    state[path[-1]] = to(old) if callable(to) else to


def with_nan(t: torch.Tensor) -> torch.Tensor:
    t = t.clone()
    t.view(-1)[-1] = math.nan
    return t


OPTIMIZER = ("optimizer", "state")
DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "moments of one entry": (
        lambda s: moments(s, lambda t: t.new_zeros(1)),
        r"optimizer's parameter 0, exp_avg is torch.float32 of shape \(1,\), not torch.float32 of shape \(",
    ),
    "moments of half precision": (lambda s: moments(s, torch.Tensor.half), "exp_avg is torch.float16 of shape"),
    "moments that are not finite": (lambda s: moments(s, with_nan), "exp_avg has entries that are not finite"),
    "moments that are no tensors": (lambda s: moments(s, torch.Tensor.tolist), "exp_avg is a list, not a tensor"),
    "sparse moments": (lambda s: moments(s, torch.Tensor.to_sparse), "exp_avg is torch.sparse_coo, not torch.strided"),
    "negative squares": (
        lambda s: edited(s, *OPTIMIZER, 3, "exp_avg_sq", to=lambda t: t - 1),
        "parameter 3, exp_avg_sq has negative entries",
    ),
    "count of a parameter": (
        lambda s: edited(s, *OPTIMIZER, 2, "step", to=torch.tensor(-5.0)),
        "parameter 2, step is -5, not 6",
    ),
    "a parameter's moments missing": (lambda s: s["optimizer"]["state"].pop(1), "does not have the state of"),
    "a moment missing": (lambda s: s["optimizer"]["state"][1].pop("exp_avg"), "other entries .*: exp_avg$|exp_avg;"),
    "groups": (lambda s: s["optimizer"]["param_groups"].pop(), "optimizer has the groups decay"),
    "no groups": (lambda s: edited(s, "optimizer", "param_groups", to=[3]), "no parameter groups"),
    "no optimizer": (lambda s: edited(s, "optimizer", to=[]), "optimizer is not the state of one"),
    "step below 0": (lambda s: edited(s, "step", to=-5), "step is -5, not a number from 0 to 6"),
    "step beyond the last": (lambda s: edited(s, "step", to=7), "step is 7, not a number from 0 to 6"),
    "step of another type": (lambda s: edited(s, "step", to=6.0), r"step is 6\.0, not"),
    "weight of another shape": (
        lambda s: edited(s, "model", "norm.weight", to=torch.ones(15)),
        r"model norm.weight is torch.float32 of shape \(15,\), not torch.float32 of shape \(16,\)",
    ),
    "weight of another dtype": (
        lambda s: edited(s, "model", "norm.weight", to=torch.Tensor.double),
        "model norm.weight is torch.float64",
    ),
    "weight that is not finite": (
        lambda s: edited(s, "model", "norm.weight", to=with_nan),
        "model norm.weight has entries that are not finite",
    ),
    "weight missing": (lambda s: s["model"].pop("norm.weight"), "other entries than this run's: norm.weight"),
    "no weights": (lambda s: edited(s, "model", to=3), "other entries than this run's: int"),
    "an entry missing": (lambda s: s.pop("random"), "it has no random"),
    "random numbers of another size": (
        lambda s: edited(s, "batches", to=lambda t: t[:-1]),
        "batches is torch.uint8 of shape",
    ),
    "random numbers that are none": (
        lambda s: edited(s, "batches", to=torch.zeros_like),
        "batches is no state of random numbers",
    ),
    "losses": (lambda s: s["train_losses"].pop(), "train_losses are not 6 numbers"),
    "losses of other steps": (
        lambda s: edited(s, "validation_losses", to=[(9, 1.0)]),
        "validation_losses are not pairs of a step up to 6",
    ),
    "time": (lambda s: edited(s, "seconds", to=-1.0), r"seconds is -1\.0, not a time"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    name: str, good: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    damage, message = DAMAGE[name]
    state = copy.deepcopy(good)
    damage(state)
    out = tmp_path / "out"
    out.mkdir()
    torch.save(state, out / "checkpoint.pt")
    before = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(SystemExit, match=message) as caught:
        run("--data", text, "--out", out, "--steps", 6)
    said = str(caught.value)
    assert "\n" not in said
    assert "--restart begins again" in said
    assert (out / "checkpoint.pt").read_bytes() == before


def test_moments_in_any_memory_are_copied(good: dict[str, Any], text: Path, tmp_path: Path) -> None:
    """An expanded tensor has the shape of a moment, and the memory of one entry."""
    weights = []
    for name, change in (
        ("expanded", lambda t: t.new_full((1,), 0.5).expand(t.shape)),
        ("full", lambda t: 0 * t + 0.5),
    ):
        state = copy.deepcopy(good)
        moments(state, change)
        state["step"], state["train_losses"] = 5, state["train_losses"][:5]
        state["validation_losses"] = []
        for held in state["optimizer"]["state"].values():
            held["step"] -= 1
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "checkpoint.pt")
        run("--data", text, "--out", tmp_path / name, "--steps", 6)
        weights.append(torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"])
    assert all(torch.equal(t, weights[1][name]) for name, t in weights[0].items())


def test_nothing_is_loaded_of_a_damaged_checkpoint(good: dict[str, Any], text: Path, tmp_path: Path) -> None:
    from checkpoint import resume
    from corpus import load_corpus
    from settings import Settings
    from trainer import Trainer

    state = copy.deepcopy(good)
    edited(state, "optimizer", "state", 2, "step", to=torch.tensor(1.0))
    torch.save(state, tmp_path / "checkpoint.pt")
    trainer = Trainer(
        Settings(context=8, layers=1, width=16, heads=2, steps=6), load_corpus(text, 8), torch.device("cpu")
    )
    before = copy.deepcopy(trainer.state())
    with pytest.raises(ValueError, match="is damaged"):
        resume(trainer, tmp_path / "checkpoint.pt")
    after = trainer.state()
    assert torch.equal(after["random"], before["random"])
    assert torch.equal(after["batches"], before["batches"])
    assert after["optimizer"]["state"] == {}
    assert all(torch.equal(t, before["model"][name]) for name, t in after["model"].items())


@pytest.mark.parametrize("content", [b"", b"P", b"PK\x03\x04 no archive", "folder", "cut"])
def test_files_that_are_no_checkpoints(content: bytes | str, good: dict[str, Any], text: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    if content == "cut":
        torch.save(good, checkpoint)
        os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    elif isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        checkpoint.mkdir()
    with pytest.raises(SystemExit, match=r"checkpoint\.pt") as caught:
        run("--data", text, "--out", checkpoint.parent, "--steps", 2)
    assert "\n" not in str(caught.value)


# --- checkpoints of earlier versions ---


def test_a_run_of_version_0_1_goes_on(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved after 3 of 6 steps by the first version that had checkpoints; with the losses that it went on to."""
    import dataclasses

    from checkpoint import resume
    from corpus import load_corpus
    from settings import Settings
    from trainer import Trainer

    full = Settings.model

    def small(self: Settings, vocab_size: int) -> Any:  # so that the file is
        options = {"filter": {"class": "HyenaFilter", "freq": 1.0, "width": 4, "emb_dim": 3}}
        return dataclasses.replace(full(self, vocab_size), d_inner=8, mixer_options=options)

    monkeypatch.setattr(Settings, "model", small)
    settings = Settings(context=8, layers=1, width=4, batch=2, steps=6, dropout=0.1, lr=0.01, mlp="gelu")
    other = Trainer(dataclasses.replace(settings, mlp="swiglu"), load_corpus(text, 8), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"other settings: mlp gelu \(now swiglu\)"):
        resume(other, GOLDEN / "shakespeare_step3.pt")
    trainer = Trainer(settings, load_corpus(text, 8), torch.device("cpu"))
    assert resume(trainer, GOLDEN / "shakespeare_step3.pt")
    assert trainer.step == 3
    assert trainer.validation_losses[0][0] == 3
    losses = [trainer.advance() for _ in range(3)]
    assert losses == pytest.approx([2.8823139667510986, 2.807497024536133, 2.8464062213897705], rel=1e-5)
    assert trainer.evaluate() == pytest.approx(2.7830021381378174, rel=1e-5)


def test_text_from_a_checkpoint_of_version_0_1(capsys: pytest.CaptureFixture[str]) -> None:
    from generate import main

    main(["--checkpoint", str(GOLDEN / "shakespeare_step3.pt"), "--length", "12", "--prompt", "fox", "--seed", "1"])
    assert len(capsys.readouterr().out) == 3 + 12 + 1


# --- two runs in one folder ---


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, EXAMPLE / "train.py", *TINY, *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_the_second_run_in_a_folder_is_refused(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ["--data", text, "--out", out, "--steps", 100_000, "--save-every", 1]
    first = start(*common)
    try:
        while not (out / "checkpoint.pt").exists() and first.poll() is None:
            time.sleep(0.01)
        for restart in ([], ["--restart"]):
            with pytest.raises(
                SystemExit, match=r"another run is at work in .*out: wait until it ends, or choose anoth"
            ):
                run(*common, *restart)
        assert first.poll() is None
        other = tmp_path / "other"
        run("--data", text, "--out", other, "--steps", 1)  # another folder is free
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stderr.close()
    # The lock went with the process, and what it left half written goes with the next run.
    (out / "checkpoint.pt.1-abc.partial").write_bytes(b"half a checkpoint")
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    with pytest.raises(SystemExit, match=rf"steps 100000 \(now {step}\)"):
        run("--data", text, "--out", out, "--steps", step)
    assert not list(out.glob("*.partial"))


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    from hyena.command.folder import replacing

    path = tmp_path / "checkpoint.pt"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first" * 1000)
        second.write(b"second")
    assert path.read_bytes() == b"first" * 1000
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("text")
    assert path.read_bytes() == b"first" * 1000
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_full_disk_keeps_the_last_checkpoint(text: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    run("--data", text, "--out", out, "--steps", 40, "--save-every", 10)
    size = (out / "checkpoint.pt").stat().st_size
    command = [sys.executable, EXAMPLE / "train.py", *TINY, "--data", text, "--out", tmp_path / "small", "--steps", 9]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train.py: ")
    assert not list((tmp_path / "small").glob("checkpoint*"))


# --- options ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", -1], r"temperature must be a number that is not negative, got -1"),
        (["--temperature", "nan"], "temperature must be a number that is not negative, got nan"),
        (["--temperature", "inf"], "temperature must be a number that is not negative, got inf"),
        (["--threads", 10**9], "threads=1000000000, on a machine with .* processors: at most"),
        (["--threads", 10**30], "threads=10*, on a machine"),
        (["--sample", -1], "sample must be at least 0, got -1"),
        (["--eval-every", -1], "eval_every must be at least 0, got -1"),
        (["--save-every", 0], "save_every must be at least 1, got 0"),
        (["--seed", 2**64], "seed must fit 64 bits, got 18446744073709551616"),
        (["--beta1", 1.5], r"beta1 must lie in \[0, 1\), got 1\.5"),
        (["--beta2", "nan"], r"beta2 must lie in \[0, 1\), got nan"),
        (["--dropout", 1], r"dropout must lie in \[0, 1\), got 1"),
        (["--weight-decay", "nan"], "weight_decay must be a number that is not negative, got nan"),
        (["--lr", "inf"], "lr must be a number that is not negative, got inf"),
        (["--clip", "nan"], "clip must be a number that is not negative, got nan"),
        (["--layers", 10**9], "layers=1000000000, width=16.* GB or more in training; this machine has"),
        (["--width", 10**7], "width=10000000.* GB or more"),
        (["--batch", 10**12], "batch=1000000000000.* GB or more"),
        (["--context", 10**12], "too short"),
        (["--device", "meta"], "the device 'meta' cannot be used here"),
    ],
)
def test_senseless_options_are_refused_before_training(
    arguments: list, message: str, text: Path, tmp_path: Path
) -> None:
    began = time.perf_counter()
    with pytest.raises(SystemExit, match=message) as caught:
        run("--data", text, "--out", tmp_path / "out", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature must not be negative, got -1"),
        (["--length", "-1"], "length must be at least 0, got -1"),
        (["--window", "0"], "window must be at least 1, got 0"),
        (["--top-k", "0"], "top_k must be at least 1, got 0"),
        (["--distilled", "0"], "distilled must be at least 1, got 0"),
        (["--seed", str(2**64)], "seed must fit 64 bits"),
        (["--prompt", "?"], r"knows no '\?'"),
        (["--device", "abacus"], "the device 'abacus' cannot be used"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt does not exist"),
    ],
)
def test_senseless_options_of_generate(arguments: list[str], message: str) -> None:
    from generate import main

    with pytest.raises(SystemExit, match=message) as caught:
        main(["--checkpoint", str(GOLDEN / "shakespeare_step3.pt"), *arguments])
    assert "\n" not in str(caught.value)


def test_generate_refuses_damaged_checkpoints(good: dict[str, Any], tmp_path: Path) -> None:
    from generate import main

    for name in ("weight of another shape", "weight that is not finite", "weight missing", "no weights"):
        state = copy.deepcopy(good)
        DAMAGE[name][0](state)
        torch.save(state, tmp_path / "checkpoint.pt")
        with pytest.raises(SystemExit, match=r"is not a checkpoint of train\.py") as caught:
            main(["--checkpoint", str(tmp_path / "checkpoint.pt")])
        assert "\n" not in str(caught.value)
