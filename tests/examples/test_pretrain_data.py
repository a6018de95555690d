"""The data of examples/pretrain: every token predicted once an epoch, whatever is interrupted; schedules; bad files."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

PRETRAIN = Path(__file__).resolve().parents[2] / "examples" / "pretrain"


def load(name: str) -> ModuleType:
    """A file of the example under a name of its own: other examples have files of the same names."""
    spec = importlib.util.spec_from_file_location(f"pretrain_{name}", PRETRAIN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(PRETRAIN))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(PRETRAIN))
    return module


data, sampler, settings = load("data"), load("sampler"), load("settings")


@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.booleans()), min_size=1, max_size=8),
)
def test_no_block_is_lost_or_seen_twice(size: int, shuffle: int, seed: int, runs: list[tuple[int, int, bool]]) -> None:
    """Runs on other numbers of processes, each from the last checkpoint, some steps after it lost to a kill."""
    batch, place = 12, None  # divides by 1 to 4 processes
    seen: list[int] = []
    for processes, steps, killed in runs:
        each = [sampler.Sampler(lambda: iter(range(size)), shuffle, seed, place) for _ in range(processes)]
        for _ in range(steps):
            for rank, one in enumerate(each):
                seen += sampler.share(one.take(batch), rank, processes)
        assert len({(one.place.epoch, one.place.taken) for one in each}) == 1
        place = dataclasses.replace(each[0].place)  # what a checkpoint keeps
        if killed:
            for _ in range(2):
                each[-1].take(batch)  # nobody keeps what these steps did
    through = sampler.Sampler(lambda: iter(range(size)), shuffle, seed)
    assert seen == through.take(len(seen))
    for at in range(0, len(seen), size):
        epoch = Counter(seen[at : at + size])
        assert max(epoch.values()) == 1
        assert len(epoch) == size or at + size > len(seen)
        assert set(epoch) <= set(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = set()
    for seed in range(3):
        one = sampler.Sampler(lambda: iter(range(64)), 64, seed)
        orders |= {tuple(one.take(64)) for _ in range(3)}
    assert len(orders) == 9
    inside = sampler.Sampler(lambda: iter(range(64)), 8, 0).take(64)
    assert all(sorted(inside[at : at + 8]) == list(range(at, at + 8)) for at in range(0, 64, 8))


def test_data_that_have_changed_or_are_none() -> None:
    with pytest.raises(ValueError, match="30 blocks were taken of data that now have fewer"):
        sampler.Sampler(lambda: iter(range(20)), 8, 0, sampler.Place(0, 30))
    with pytest.raises(ValueError, match="nothing to predict"):
        sampler.Sampler(lambda: iter(()), 8, 0).take(1)


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4), st.integers(1, 20))
def test_each_token_is_predicted_once(tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], n: int) -> None:
    folder = tmp_path_factory.mktemp("texts")
    texts = [text.replace(b"\0", b"0").replace(b"\x1f", b"1") for text in texts]  # 1f 8b would be gzip
    files = []
    for i, text in enumerate(texts):
        files.append(folder / f"{i}.txt{'.gz' * (i % 2)}")
        files[-1].write_bytes(gzip.compress(text) if i % 2 else text)
    found = list(data.blocks([str(file) for file in files], n))
    assert [block.index for block in found] == list(range(len(found)))
    assert all(len(block.tokens) == n + 1 for block in found[:-1])
    whole = b"".join(text + b"\0" for text in texts)
    assert b"".join(block.tokens[1:] for block in found) == whole[1:]
    assert b"".join(block.tokens[:-1] for block in found) == whole[:-1]
    assert sum(block.targets for block in found) == len(whole) - 1


def test_fasta_records_are_documents(tmp_path: Path) -> None:
    for name, pack in (("a.fa", bytes), ("a.fasta.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b">one first\nACgt\nNN\n\n>two\nTTT\n"))
        assert b"".join(data.stream([str(tmp_path / name)])) == b"ACGTNN\0TTT\0"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data, "CHUNK", 2)
        assert list(data.stream([str(tmp_path / "a.fa")])) == [b"AC", b"GT", b"NN", b"\0", b"TT", b"T", b"\0"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "a.txt does not exist"),
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"ab\0c", "a.txt is not text: byte 2 is 0"),
        # Without the time of day, or the processes that share the tests do not agree on their names.
        ("a.txt.gz", gzip.compress(b"a" * 5000, mtime=0)[:-9], "a.txt.gz: the gzip data are damaged or end too early"),
        ("a.fa", b">one\nACGT\n>two\n>three\nAC\n", "a.fa, line 3: record 'two' is empty; expected letters"),
        ("a.fa.gz", gzip.compress(b"ACGT\n", mtime=0), "a.fa.gz, line 1: expected a header"),
        ("a.fa", b">one\nAC GT\n", "a.fa, line 2: record 'one' has ' ' in column 3"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(data.blocks([str(tmp_path / name)], 8))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        list(data.blocks([str(tmp_path)], 8))


def test_lengths_double_and_blocks_stay() -> None:
    s = settings.Settings(steps=20, warmup=5, length=64, start_length=8, length_warmup=9)
    assert [s.length_at(step) for step in range(11)] == [8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64]
    s = settings.Settings(steps=20, warmup=5, length=8, start_length=8, length_warmup=0)
    assert s.length_at(0) == 8


def test_learning_rate() -> None:
    s = settings.Settings(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [s.lr_at(step) for step in range(101)]
    assert rates[:10] == [pytest.approx((step + 1) / 11) for step in range(10)]
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isfinite(settings.Settings(steps=3, warmup=3).lr_at(3))
