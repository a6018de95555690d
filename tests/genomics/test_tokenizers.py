"""Tokens of letters and bytes, both strands, and what is said of letters that have none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.dna import PAIR, TOKEN, build
from hyena.genomics import (
    ByteTokenizer,
    DNATokenizer,
    LetterError,
    augment_strands,
    reverse_complement,
    reverse_complement_tokens,
    tokenizer_for,
)
from hyena.models import CausalLM, CausalLMConfig

DNA = st.text("ACGTN", min_size=1, max_size=40)


@given(DNA)
def test_letters_of_hyenadna(sequence: str) -> None:
    tokens = DNATokenizer().encode(sequence)
    assert tokens.tolist() == [TOKEN[letter] for letter in sequence]
    assert tokens.dtype == torch.int64
    assert DNATokenizer().decode(tokens) == sequence


def test_special_tokens_of_hyenadna() -> None:
    assert DNATokenizer(special_tokens=True).encode("AC").tolist() == [0, 7, 8, 1]
    tokenizer = DNATokenizer()
    assert [tokenizer.token(name) for name in ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[UNK]", "A")] == [
        0, 1, 2, 3, 4, 6, 7,
    ]  # fmt: skip
    assert (tokenizer.pad, tokenizer.eos, tokenizer.vocab_size) == (4, 1, 12)
    assert tokenizer.decode([0, 7, 6, 1]) == "A"
    assert tokenizer.decode([0, 7, 6, 1], skip_special=False) == "[CLS]A[UNK][SEP]"
    with pytest.raises(ValueError, match="tokens 12, 99 cannot be decoded: the vocabulary has 12"):
        tokenizer.decode([7, 12, 99])
    with pytest.raises(ValueError, match=r"no token '\[X\]'"):
        tokenizer.token("[X]")


def test_padding_on_the_left_and_on_the_right() -> None:
    batch = DNATokenizer()(["ACG", "T"])
    assert batch.tokens.tolist() == [[7, 8, 9], [4, 4, 10]]
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]
    batch = ByteTokenizer()(["AC", "T"])
    assert batch.tokens.tolist() == [[65, 67], [84, 1]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    with pytest.raises(ValueError, match=r"every row needs at least one token, got lengths \[1, 0\]"):
        DNATokenizer()(["A", ""])
    with pytest.raises(ValueError, match="takes a list of texts"):
        DNATokenizer()("ACGT")


def test_padded_rows_in_a_model_give_what_they_give_alone() -> None:
    model = build(head="classes")
    got = model(*DNATokenizer()(["ACGTTGCA", "GAT"]))
    for i, sequence in enumerate(("ACGTTGCA", "GAT")):
        torch.testing.assert_close(got[i], model(DNATokenizer().encode(sequence)[None])[0], rtol=0, atol=1e-12)


@given(st.text(max_size=30))
def test_bytes(text: str) -> None:
    try:
        want = list(text.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate
        return
    tokens = ByteTokenizer().encode(text)
    assert tokens.tolist() == want
    assert ByteTokenizer().decode(tokens, skip_special=False) == text


def test_decoding_bytes() -> None:
    assert ByteTokenizer().decode([0, 65, 67, 1, 1]) == "AC"
    assert ByteTokenizer().decode([65, 255]) == "A\ufffd"
    with pytest.raises(ValueError, match="tokens 256 cannot be decoded: which are no bytes"):
        ByteTokenizer().decode([65, 256])


@pytest.mark.parametrize(
    ("tokenizer", "text", "error"),
    [
        (DNATokenizer(), "ACGU", "'U' at position 4 is not one of ACGTN"),
        (DNATokenizer(), "ACgt", "'g' at position 3 .* lower-case letters"),
        (DNATokenizer(), "Aµ?", "'µ' at position 2"),
        (DNATokenizer(), "A?", "'\\?' at position 2"),
        (DNATokenizer(), "A€C", "'€' at position 2"),
        (ByteTokenizer("ACGT"), "ACGN", "'N' at position 4 is not one of ACGT"),
        (ByteTokenizer("ACGT"), "A C", "' ' at position 2"),
    ],
)
def test_other_letters(tokenizer: DNATokenizer, text: str, error: str) -> None:
    with pytest.raises(LetterError, match=error) as raised:
        tokenizer.encode(text)
    assert raised.value.letter == text[raised.value.position - 1]


def test_letters_that_are_taken_when_asked_for() -> None:
    assert DNATokenizer(upper=True).encode("acGTn").tolist() == [7, 8, 9, 10, 11]
    assert DNATokenizer(unknown="N").encode("ARc").tolist() == [7, 11, 11]
    assert DNATokenizer(unknown="[UNK]").encode("ARc").tolist() == [7, 6, 6]
    with pytest.raises(ValueError, match="unknown must be"):
        DNATokenizer(unknown="skip")


@given(DNA)
def test_reverse_complement(sequence: str) -> None:
    want = "".join(PAIR[letter] for letter in reversed(sequence))
    assert reverse_complement(sequence) == want
    assert reverse_complement(sequence.lower()) == want.lower()


def test_reverse_complement_of_iupac() -> None:
    # Each letter as the set of bases it stands for.
    bases = {"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT",
             "V": "ACG", "N": "ACGT", "A": "A", "C": "C", "G": "G", "T": "T"}  # fmt: skip
    for letter, stands_for in bases.items():
        paired = {PAIR[base] for base in stands_for}
        assert set(bases[reverse_complement(letter)]) == paired
    with pytest.raises(LetterError, match="'X' at position 2 has no complement"):
        reverse_complement("AX")


@given(st.lists(DNA, min_size=1, max_size=4), st.sampled_from(["dna", "special", "bytes"]))
def test_reverse_complement_of_tokens(sequences: list[str], kind: str) -> None:
    tokenizer = {"dna": DNATokenizer(), "special": DNATokenizer(special_tokens=True), "bytes": ByteTokenizer()}[kind]
    tokens, mask = tokenizer(sequences)
    want = tokenizer([reverse_complement(sequence) for sequence in sequences]).tokens
    assert torch.equal(reverse_complement_tokens(tokens, tokenizer), want)
    assert torch.equal(reverse_complement_tokens(tokens, tokenizer, mask), want)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64], ids=str)
def test_padding_that_is_a_letter_stays(dtype: torch.dtype) -> None:
    """Where the token of padding is a letter's, the mask alone tells them apart."""
    tokenizer = DNATokenizer()
    text, other = tokenizer(["AACGT", "ACGTT"]).tokens
    pad = text[:1].expand(3)
    tokens = torch.stack([torch.cat([pad, text]), torch.cat([text, pad])])
    keep = torch.tensor([[0] * 3 + [1] * 5, [1] * 5 + [0] * 3])
    want = torch.stack([torch.cat([pad, other]), torch.cat([other, pad])])
    assert torch.equal(reverse_complement_tokens(tokens, tokenizer, keep.to(dtype)), want)
    with pytest.raises(ValueError, match=r"an integer mask holds 1 .* got 2"):
        reverse_complement_tokens(tokens, tokenizer, keep + 1)
    with pytest.raises(ValueError, match=r"mask must be bool or integer, .*float32 of shape \(2, 8\)"):
        reverse_complement_tokens(tokens, tokenizer, keep.float())


def test_augmentation() -> None:
    tokens, _ = DNATokenizer()(["AACGT"] * 400)
    flipped = reverse_complement_tokens(tokens)
    got = augment_strands(tokens, generator=torch.Generator().manual_seed(0))
    rows = (got == flipped).all(1)
    assert 150 < int(rows.sum()) < 250
    assert torch.equal(got[~rows], tokens[~rows])
    assert torch.equal(augment_strands(tokens, p=0.0), tokens)
    assert torch.equal(augment_strands(tokens, p=1.0), flipped)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 2"):
        augment_strands(tokens, p=2)


def test_tokenizers_of_models() -> None:
    assert isinstance(tokenizer_for(build()), DNATokenizer)
    assert isinstance(tokenizer_for(torch.compile(build())), DNATokenizer)
    with pytest.raises(ValueError, match="a CausalLM with vocab_size=65 does not say"):
        tokenizer_for(CausalLM(CausalLMConfig(65, 8, 8, 1)))
