"""Scores, embeddings and sequences of StripedHyena: against what the authors' code gave, and one sequence at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.live_memory import LiveBytes
from helpers.released import deviation
from helpers.striped import golden
from hyena.checkpoints import load_striped_hyena
from hyena.command import main
from hyena.genomics import ByteTokenizer, Tokenizer, embed, generate, read_fasta, score, tokenizer_for
from hyena.models import StripedHyena, StripedHyenaConfig

RAGGED = ["ACGTTGCAAC", "GA", "TTTGACCATGCAATCGATCGAACGTTAGC", "CCGNA"]
NAMES = ["evo1_tiny", "evo2_tiny"]


class Numbers(Tokenizer):
    """Any token as a letter of its own: golden inputs are no bytes."""

    vocab_size, alphabet, pad, padding_side = 512, None, 0, "right"

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(letter) - 0x4E00 for letter in text])

    def decode(self, tokens: Tensor | Sequence[int], *, skip_special: bool = True) -> str:
        return "".join(chr(0x4E00 + int(token)) for token in tokens)


def load(name: str, dtype: torch.dtype = torch.float64) -> StripedHyena:
    return load_striped_hyena(golden(name).folder, dtype=dtype)


def alone(model: StripedHyena, sequence: str, start: int | None) -> Tensor:
    row = torch.tensor([([] if start is None else [start]) + list(sequence.encode())])
    with torch.no_grad():
        p = model(row)[0].exp()
    return (p[torch.arange(row.size(1) - 1), row[0, 1:]] / p.sum(-1)[:-1]).log()


@pytest.mark.parametrize("max_tokens", [7, 100, 10_000])
@pytest.mark.parametrize(
    ("name", "dtype", "bound"), [("evo1_tiny", torch.float64, 1e-9), ("evo2_tiny", torch.float32, 1e-5)]
)
def test_golden_logits(name: str, dtype: torch.dtype, bound: float, max_tokens: int) -> None:
    out = golden(name).out
    logits = out["logits"].double()
    ids = out["input_ids"][: logits.size(0)]
    want = (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    texts = [Numbers().decode(row) for row in ids]
    found = score(load(name, dtype), texts, tokenizer=Numbers(), per_letter=True, max_tokens=max_tokens)
    for i, each in enumerate(found):
        assert deviation(each.per_letter["forward"], want[i]) < bound
        assert abs(each.log_likelihood / float(want[i].sum()) - 1) < bound


@pytest.mark.parametrize("name", NAMES)
def test_ragged_batches_and_pieces(name: str) -> None:
    model = load(name)
    assert isinstance(tokenizer_for(model), ByteTokenizer)
    for start in (None, ByteTokenizer.eos):
        want = [alone(model, sequence, start) for sequence in RAGGED]
        for max_tokens in (1, 6, 40, 1000):
            found = score(model, RAGGED, start_token=start, per_letter=True, max_tokens=max_tokens)
            for each, w in zip(found, want, strict=True):
                torch.testing.assert_close(each.per_letter["forward"], w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings(name: str) -> None:
    model = load(name)
    layers = [0, 1, len(model.blocks), "norm"]
    for max_tokens in (1, 6, 1000):
        found = embed(model, RAGGED, layers, max_tokens=max_tokens)
        for i, sequence in enumerate(RAGGED):
            with torch.no_grad():
                x = model.embedding(torch.tensor([list(sequence.encode())]))
                states = [x]
                for block in model.blocks:
                    states.append(block(states[-1]))
                states.append(model.norm(states[-1]))
            for layer, at in zip(layers, (0, 1, -2, -1), strict=True):
                want = states[at][0].sum(0) / len(sequence)
                assert deviation(found[layer][i], want) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_greedy_sequences(name: str) -> None:
    model = load(name)
    for max_tokens in (1, 1000):
        found = generate(model, RAGGED, 8, temperature=0, max_tokens=max_tokens)
        for sequence, text in zip(RAGGED, found, strict=True):
            assert len(text) == 8
            for at in range(8):
                with torch.no_grad():
                    logits = model(torch.tensor([list((sequence + text[:at]).encode())]))[0, -1]
                assert max("ACGT", key=lambda letter: float(logits[ord(letter)])) == text[at]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = golden("evo2_tiny").folder
    (tmp_path / "x.fa").write_text("".join(f">r{i}\n{sequence}\n" for i, sequence in enumerate(RAGGED)))
    given = ["score", "--model", str(folder), str(tmp_path / "x.fa"), "--start-token", "0", "--dtype", "float64"]
    assert main([*given, "--output", str(tmp_path / "s.tsv")]) == 0
    want = score(load("evo2_tiny"), list(read_fasta(tmp_path / "x.fa")), start_token=0)
    rows = [line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines()]
    at = rows[0].index("log_likelihood")
    assert [float(row[at]) for row in rows[1:]] == pytest.approx([each.log_likelihood for each in want], rel=1e-7)

    # Weights in one place, their settings in another.
    (tmp_path / "weights").mkdir()
    shutil.copy(folder / "model.safetensors", tmp_path / "weights")
    given[2] = str(tmp_path / "weights")
    capsys.readouterr()
    assert main([*given, "--output", str(tmp_path / "t.tsv")]) == 1
    assert "has no config.json beside it: give one by --config" in capsys.readouterr().err
    assert main([*given, "--config", str(folder / "config.json"), "--output", str(tmp_path / "t.tsv")]) == 0
    assert (tmp_path / "t.tsv").read_bytes() == (tmp_path / "s.tsv").read_bytes()
    assert main([*given, "--config", "evo2_1b_base", "--output", str(tmp_path / "u.tsv")]) == 1
    assert "does not fit its config" in capsys.readouterr().err
    # Letters outside the alphabet, which a model of bytes would read without a word.
    (tmp_path / "x.fa").write_text(">a\nMKVLA\n")
    given = ["score", "--model", str(folder), str(tmp_path / "x.fa"), "--output", str(tmp_path / "v.tsv")]
    assert main(given) == 1
    assert "line 2: record 'a' has 'M' in column 1; expected only letters of ACGTN" in capsys.readouterr().err
    assert main([*given, "--alphabet", "any"]) == 0


@pytest.mark.parametrize("task", [score, embed])
def test_memory_of_a_long_sequence(task: Callable[..., object]) -> None:
    """Beyond its tokens and one number a letter, it is that of a piece."""
    config = StripedHyenaConfig(512, 1 << 15, 16, ("SE", "MR", "LI"), num_heads=2, groups=4, mr_taps=16, modes=4)
    model = StripedHyena(config).eval()
    peaks = []
    for length in (1 << 12, 1 << 15):
        with LiveBytes() as memory:
            task(model, ["ACGT" * (length // 4)], max_tokens=512)
        peaks.append(memory.peak)
    assert (peaks[1] - peaks[0]) / ((1 << 15) - (1 << 12)) < 40
    with LiveBytes() as memory:
        task(model, ["ACGT" * (1 << 10)], max_tokens=1 << 12)
    assert memory.peak > 4 * peaks[0]  # at once
