"""FASTA files: what is read back, and every way of being malformed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena.genomics import FastaError, Record, read_fasta, windows, write_fasta


def file(folder: Path, content: bytes, name: str = "x.fa") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@given(
    st.lists(
        st.tuples(st.text("abcXYZ0-_|.", min_size=1, max_size=8), st.text("ACGTN", min_size=1, max_size=150)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 80),
    st.sampled_from(["x.fa", "x.fa.gz"]),
)
def test_round_trip(tmp_path: Path, records: list[tuple[str, str]], width: int, name: str) -> None:
    written = [Record(title, sequence, "of something") for title, sequence in records]
    write_fasta(tmp_path / name, written, width=width)
    read = list(read_fasta(tmp_path / name))
    assert [(r.name, r.sequence, r.description) for r in read] == [(t, s, "of something") for t, s in records]
    assert {r.file for r in read} == {str(tmp_path / name)}


def test_what_is_well_formed(tmp_path: Path) -> None:
    content = b"\n>a first\r\nAC\r\nGT \r\n\r\n>b\nacgt\n\n\nN"
    read = list(read_fasta(file(tmp_path, content)))
    assert [(r.name, r.description, r.sequence, r.line) for r in read] == [
        ("a", "first", "ACGT", 2),
        ("b", "", "acgtN", 6),
    ]
    upper = list(read_fasta(file(tmp_path, content), alphabet="ACGTN", upper=True))
    assert [r.sequence for r in upper] == ["ACGT", "ACGTN"]
    # Known by its bytes, whatever it is called; members one after the other, as bgzip writes them.
    packed = file(tmp_path, gzip.compress(content[:12]) + gzip.compress(content[12:]), "y.fa")
    assert [r.sequence for r in read_fasta(packed)] == ["ACGT", "acgtN"]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"", 1, "expected a header, .* got the end of the file"),
        (b"\n\n", 2, "expected a header, .* got the end of the file"),
        (b"ACGT\n>a\nACGT\n", 1, "expected a header, a line that starts with '>', got 'ACGT'"),
        (b"@read\nACGT\n+\nIIII\n", 1, "it looks like FASTQ"),
        (b">\nACGT\n", 1, "expected a name right after '>', got '>'"),
        (b">a\nAC\n> b\nACGT\n", 3, "expected a name right after '>', got '> b'"),
        (b">a\n>b\nACGT\n", 1, "record 'a' is empty; expected letters on the lines after its header"),
        (b">a\nACGT\n>b\n\n", 3, "record 'b' is empty"),
        (b">a\nACGT\nAC GT\n", 3, "record 'a' has ' ' in column 3; expected only letters of ACGTN"),
        (b">a\nACGT\nACG1\n", 3, "record 'a' has '1' in column 4"),
        (b">a\nACGT\nAC\xff\n", 3, r"record 'a' has '\\\\xff' in column 3"),
        (b">a\nACGT\nacgt\n", 3, "has 'a' in column 1; .*--upper"),
        (b">a \xff\nACGT\n", 1, "expected a header in UTF-8"),
        (b">a\nACGT\n;comment\n", 3, "record 'a' has ';' in column 1"),
    ],
)
def test_what_is_malformed(tmp_path: Path, content: bytes, line: int, problem: str) -> None:
    for name, packed in (("x.fa", content), ("x.fa.gz", gzip.compress(content))):
        path = file(tmp_path, packed, name)
        with pytest.raises(FastaError, match=problem) as raised:
            list(read_fasta(path, alphabet="ACGTN"))
        assert str(raised.value).startswith(f"{path}, line {line}: ")
        assert raised.value.line == line


def test_without_an_alphabet(tmp_path: Path) -> None:
    assert next(read_fasta(file(tmp_path, b">a\nMKV*-x\n"))).sequence == "MKV*-x"
    with pytest.raises(FastaError, match="' ' in column 2; expected letters only, without spaces"):
        list(read_fasta(file(tmp_path, b">a\nM K\n")))


@pytest.mark.parametrize("cut", [3, 30, -1])
def test_damaged_gzip(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(b">a\n" + b"ACGT" * 500 + b"\n", 1)
    with pytest.raises(FastaError, match="damaged or end too early"):
        list(read_fasta(file(tmp_path, whole[:cut])))
    broken = bytearray(whole)
    broken[-6] ^= 255  # of the check sum
    with pytest.raises(FastaError, match="damaged or end too early"):
        list(read_fasta(file(tmp_path, bytes(broken))))


def test_records_before_an_error_are_read(tmp_path: Path) -> None:
    read = read_fasta(file(tmp_path, b">a\nAC\n>b\nGT\n>c\n>d\nAC\n"))
    assert [next(read).name, next(read).name] == ["a", "b"]
    with pytest.raises(FastaError, match="'c' is empty"):
        next(read)


@given(
    st.text(min_size=1, max_size=4),
    st.text(st.characters(max_codepoint=300, exclude_categories=[]), max_size=8),
    st.text(st.characters(max_codepoint=300), max_size=4),
    st.integers(1, 5),
)
def test_what_is_written_reads_back(tmp_path: Path, name: str, sequence: str, description: str, width: int) -> None:
    """Anything at all is read back as it was, or refused."""
    record = Record(name, sequence, description)
    try:
        write_fasta(tmp_path / "x.fa", [record], width=width)
    except ValueError:
        return
    (read,) = read_fasta(tmp_path / "x.fa")
    assert (read.name, read.sequence, read.description) == (name, sequence, description)


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        ("AC>GT", "record 'a' has '>' at 3 of 5: a FASTA file has printable ASCII"),
        (">", "has '>' at 1 of 1"),
        ("AC GT", "has ' ' at 3 of 5"),
        ("ACGT\n", r"has '\\n' at 5 of 5"),
        ("ACéGT", "has 'é' at 3 of 5"),
    ],
)
def test_letters_that_cannot_be_written(tmp_path: Path, sequence: str, words: str) -> None:
    for width in (2, 70):
        with pytest.raises(ValueError, match=words):
            write_fasta(tmp_path / "x.fa", [Record("a", sequence)], width=width)


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    for record, error in (
        (Record("a b", "AC"), "cannot be the name"),
        (Record("", "AC"), "cannot be the name"),
        (Record("a", "AC", "x\n>y"), "cannot be the name"),
        (Record("a", "AC", " x"), "' x' cannot be the description of record 'a'"),
        (Record("a", "AC", "x\t"), "no space at its start or end"),
        (Record("a", ""), "has no letters"),
    ):
        with pytest.raises(ValueError, match=error):
            write_fasta(tmp_path / "x.fa", [record])


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_windows(length: int, size: int, step: int) -> None:
    sequence = "".join("ACGT"[i * i % 4] for i in range(length))
    pieces = list(windows([Record("a", sequence, file="x.fa", line=7)], size, step))
    for number, piece in enumerate(pieces):
        first, last = map(int, piece.name.split(":")[1].split("-"))
        assert first == number * step + 1
        assert piece.sequence == sequence[first - 1 : last]
        assert len(piece) == min(size, length)
        assert (piece.file, piece.line) == ("x.fa", 7)
    assert len(pieces) == (1 if length <= size else (length - size) // step + 1)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_windows_to_the_end(length: int, size: int, step: int) -> None:
    record = Record("a", "".join("ACGT"[i * i % 4] for i in range(length)))
    if step > size:
        with pytest.raises(ValueError, match=f"step must be at most {size}"):
            list(windows([record], size, step, to_the_end=True))
        return
    pieces = list(windows([record], size, step, to_the_end=True))
    spans = [tuple(map(int, piece.name.split(":")[1].split("-"))) for piece in pieces]
    assert [piece.sequence for piece in pieces] == [record.sequence[a - 1 : b] for a, b in spans]
    assert {i for a, b in spans for i in range(a, b + 1)} == set(range(1, length + 1))
    assert all(b - a + 1 == min(size, length) for a, b in spans)
    assert len(set(spans)) == len(spans)
    assert [a for a, _ in spans[:-1]] == [1 + i * step for i in range(len(spans) - 1)]


def test_windows_of_no_size() -> None:
    with pytest.raises(ValueError, match="size and step must be at least 1, got 0 and 0"):
        list(windows([Record("a", "AC")], 0))
