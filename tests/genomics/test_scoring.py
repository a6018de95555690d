"""Log-likelihoods of ragged batches, of both strands, in pieces: against runs over one sequence at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.dna import L_MAX, MODELS, build, log_likelihoods
from hyena.genomics import DNATokenizer, Record, score
from hyena.genomics.batches import batches, groups
from hyena.models import HyenaDNA, HyenaDNAConfig

BUILT = {name: build(name) for name in MODELS}
SEQUENCES = st.lists(st.text("ACGTN", min_size=2, max_size=33), min_size=1, max_size=5)


@pytest.mark.parametrize("name", MODELS)
@given(
    sequences=SEQUENCES,
    max_tokens=st.sampled_from([1, 2, 5, 7, 16, 40, 1000]),
    strands=st.sampled_from(["forward", "reverse", "both"]),
    start=st.sampled_from([None, 1]),
)
def test_scores(name: str, sequences: list[str], max_tokens: int, strands: str, start: int | None) -> None:
    model = BUILT[name]
    got = score(
        model,
        sequences,
        tokenizer=DNATokenizer(),
        strands=strands,
        start_token=start,
        per_letter=True,
        max_tokens=max_tokens,
    )
    for found, sequence in zip(got, sequences, strict=True):
        names = ["forward", "reverse"] if strands == "both" else [strands]
        want = {strand: log_likelihoods(model, sequence, strand, start) for strand in names}
        assert list(found.strands) == names
        for strand in names:
            torch.testing.assert_close(found.per_letter[strand], want[strand], rtol=0, atol=1e-10)
            assert math.isclose(found.strands[strand], float(want[strand].sum()), abs_tol=1e-9)
        assert math.isclose(
            found.log_likelihood, sum(map(float, map(torch.sum, want.values()))) / len(names), abs_tol=1e-9
        )
        assert found.letters == len(sequence) - (start is None)
        assert math.isclose(found.mean, found.log_likelihood / found.letters)
        assert math.isclose(found.perplexity, math.exp(-found.mean))


def test_pieces_are_taken_and_batches_are_shared() -> None:
    """What goes through the model at once is what ``max_tokens`` says."""
    model = build()
    seen: list[tuple[int, int]] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
    score(model, ["ACGT" * 10, "ACG", "ACGTA", "AC"], max_tokens=16)
    # 39 positions in three pieces, then 4 positions with 2 and 1 of the others beside them.
    assert seen == [(1, 16), (1, 16), (1, 7), (3, 4)]


def test_float32_in_pieces() -> None:
    model = build("dna", torch.float32)
    sequence = "ACGTTGCAAN" * 6
    whole, cut = (score(model, [sequence], max_tokens=n)[0] for n in (1000, 7))
    assert math.isclose(whole.log_likelihood, cut.log_likelihood, rel_tol=1e-5)
    assert score(model, [sequence])[0].per_letter is None


def test_a_model_in_training_is_left_there() -> None:
    model = build(dropout=0.3, embed_dropout=0.3).train()
    want = score(model.eval(), ["ACGTTG"])[0]
    model.train()
    model.blocks[1].eval()
    for max_tokens in (2, 100):
        assert math.isclose(score(model, ["ACGTTG"], max_tokens=max_tokens)[0].log_likelihood, want.log_likelihood)
    assert model.training
    assert not model.blocks[1].training
    assert torch.is_grad_enabled()


def test_the_longest_sequence_that_fits() -> None:
    """The last letter is not read, so there is room for one more than the context; none with a token before."""
    longest = "ACGTA" * 13
    assert len(longest) == L_MAX + 1
    assert score(build(), [longest])[0].letters == L_MAX
    with pytest.raises(
        ValueError, match=rf"record '0' has {L_MAX + 1} letters, .* l_max={L_MAX}: give it at most 64 letters"
    ):
        score(build(), [longest], start_token=1)


def test_bad_sequences_are_named_before_anything_is_computed() -> None:
    model = build()
    model.blocks[0].register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    good = Record("good", "ACGT")
    for bad, error in (
        (Record("b", "", file="x.fa", line=3), "x.fa, line 3: record 'b' is empty"),
        (Record("b", "ACGU"), r"record 'b': 'U' at position 4 is not one of ACGTN"),
        (Record("b", "acgt"), "record 'b': 'a' at position 1 .* lower-case"),
        (Record("b", "A"), "record 'b' has 1 letter, which nothing comes before"),
        (Record("b", "A" * 70, file="x.fa", line=9), "x.fa, line 9: record 'b' has 70 letters, .* at most 65 letters"),
    ):
        with pytest.raises(ValueError, match=error):
            score(model, [good, bad])
    with pytest.raises(ValueError, match=r"record '1' is empty"):
        score(model, ["ACGT", ""])


def test_bad_arguments() -> None:
    model = build()
    for keywords, error in (
        ({"strands": "two"}, "strands must be one of forward, reverse, both, got 'two'"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"start_token": 12}, "start_token must be a token of the model, 0 to 11, got 12"),
    ):
        with pytest.raises(ValueError, match=error):
            score(model, ["ACGT"], **keywords)
    with pytest.raises(TypeError, match=r"got one str: pass \[sequence\]"):
        score(model, "ACGT")
    with pytest.raises(TypeError, match="got a int"):
        score(model, [7])
    with pytest.raises(ValueError, match="head=None"):
        score(build(head=None), ["ACGT"])
    with pytest.raises(ValueError, match="has 12 tokens, the model vocab_size=5"):
        score(HyenaDNA(HyenaDNAConfig(vocab_size=5, l_max=8, d_model=8, head="lm")), ["A"], tokenizer=DNATokenizer())


def test_a_model_that_cannot_be_stepped_says_what_works() -> None:
    model = build()
    model.init_state = lambda *_: (_ for _ in ()).throw(ValueError("it has no state"))
    with pytest.raises(ValueError, match="pieces of max_tokens=5, but it has no state; max_tokens=8 takes it whole"):
        score(model, ["ACGTACGTA"], max_tokens=5)
    assert score(model, ["ACGTACGTA"], max_tokens=8)[0].letters == 8


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_batches(lengths: list[int], max_tokens: int) -> None:
    found = batches(lengths, max_tokens)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
    first = [lengths[batch[0]] for batch in found]
    assert all(a >= b for a, b in pairwise(first))


@given(st.lists(st.integers(1, 50), max_size=400), st.integers(1, 60), st.integers(0, 400))
def test_groups_do_not_depend_on_what_follows(lengths: list[int], max_tokens: int, cut: int) -> None:
    whole = list(groups(lengths, int, max_tokens))
    assert [n for group in whole for n in group] == lengths
    assert all(group for group in whole)
    assert (
        list(groups(lengths[:cut], int, max_tokens))[:-1]
        == whole[: max(len(list(groups(lengths[:cut], int, max_tokens))) - 1, 0)]
    )
