"""The parts of the language experiment: operations against torch's counter and a published table, n-grams, pieces."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from experiments.language import flops
from experiments.language.bpe import BPE
from experiments.language.ngrams import log_probabilities
from experiments.language.texts import in_pieces, load, windows
from experiments.shared.models import language_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# GPT-2's tokens, and the training of table 4.4: 15 billion tokens and a little in 30,000 steps of 256 rows.
VOCABULARY, LENGTH, ROWS = 50257, 2048, 30_000 * 256


@pytest.mark.parametrize(
    ("layers", "width", "inner", "mixer", "published"),
    [
        (12, 768, 3072, "attention", 1.88e19),
        (24, 1024, 4096, "attention", 4.77e19),
        (18, 864, 1728, "hyena", 1.87e19),
        (36, 1024, 2048, "hyena", 3.93e19),
    ],
)
def test_the_formula_gives_the_published_table(
    layers: int, width: int, inner: int, mixer: str, published: float
) -> None:
    # Equation 4 of the paper convolves the value too: N long filters, where the code has N - 1.
    mixed = (
        flops.attention(LENGTH, width, width // 64) if mixer == "attention" else flops.hyena(LENGTH, width, filters=2)
    )
    row = flops.ends(LENGTH, width, VOCABULARY).total + layers * (mixed + flops.mlp(LENGTH, width, inner)).total
    assert 3 * ROWS * row == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ["hyena", "h3", "attention"])
@pytest.mark.parametrize("hybrid", [(), (1,)])
def test_matrix_products_are_those_that_torch_counts(name: str, hybrid: tuple[int, ...]) -> None:
    model = language_model(name, 65, 48, width=16, layers=2, heads=2, d_inner=40, attention_layers=hybrid).eval()

    def project(u: list[int], weight: list[int], *_: object, **__: object) -> int:
        return 2 * math.prod(u) * weight[0]

    known = {torch.ops.hyena.project: project}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=known) as counter:
        model(torch.randint(65, (3, 48)))
    counted = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    filters = sum(each for name, each in counted.items() if name.endswith(".filter"))  # made once, whatever the rows
    found = flops.forward(model, 48)
    assert counted["Global"] - filters == 3 * found.products
    assert flops.training(model, 48, 5) == 3 * 5 * found.total


def test_a_mixer_without_a_count() -> None:
    with pytest.raises(ValueError, match=r"no count for this S5; .*HyenaOperator, H3 and Attention"):
        flops.forward(language_model("s5", 65, 16, width=8, layers=1), 16)


def kneser_ney(train: list[int], context: tuple[int, ...], token: int, vocabulary: int, order: int) -> float:
    """The definition, from dictionaries."""

    def grams(n: int) -> Counter[tuple[int, ...]]:
        return Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))

    def p(n: int, context: tuple[int, ...], token: int) -> float:
        if n == 0:
            return 1 / vocabulary
        counts = grams(n) if n == order else Counter(gram[1:] for gram in grams(n + 1))
        once, twice = (sum(c == times for c in counts.values()) for times in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        same = {gram: c for gram, c in counts.items() if gram[:-1] == context}
        below = p(n - 1, context[1:], token)
        if not same:
            return below
        taken = max(0.0, same.get((*context, token), 0) - discount)
        return (taken + discount * len(same) * below) / sum(same.values())

    short = context[-(order - 1) :] if order > 1 else ()
    return p(min(order, len(context) + 1), short, token)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=30), st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_ngrams_are_as_defined(train: list[int], test: list[int]) -> None:
    for order in (1, 2, 4):
        found = log_probabilities(torch.tensor(train), torch.tensor(test), 4, order)
        expected = [math.log(kneser_ney(train, tuple(test[:t]), test[t], 4, order)) for t in range(1, len(test))]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_ngrams_are_distributions() -> None:
    train = torch.randint(5, (400,), generator=torch.Generator().manual_seed(0))
    for order in (1, 2, 3, 5):
        each = [log_probabilities(train, torch.tensor([3, 1, 4, 1, 2, i]), 5, order)[-1] for i in range(5)]
        torch.testing.assert_close(torch.stack(each).exp().sum().item(), 1.0, rtol=1e-12, atol=0)


def test_ngrams_that_cannot_be_numbered() -> None:
    tokens = torch.arange(9)
    with pytest.raises(ValueError, match=r"1024\^order below 2\^63; got 7"):
        log_probabilities(tokens, tokens, 1024, 7)
    with pytest.raises(ValueError, match="got 0"):
        log_probabilities(tokens, tokens, 1024, 0)


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_pieces_write_any_text(train: str, test: str) -> None:
    bpe = BPE.learned(train, 300)
    assert bpe.decode(bpe.encode(train)) == train
    assert bpe.decode(bpe.encode(test)) == test


def test_pieces_by_hand() -> None:
    bpe = BPE.learned("abab abab abc", 259)
    # "ab" comes five times, then "ab ab" in two words; of " " + "abab" and " " + "ab" with one each, none comes twice.
    a, b, c, space = (ord(x) for x in "abc ")
    assert bpe.pairs == [(a, b), (256, 256)]
    assert bpe.encode("abab abc cab") == [257, space, 256, c, space, c, 256]
    assert bpe.vocabulary == 258
    with pytest.raises(ValueError, match="a vocabulary of 255 does not hold them"):
        BPE.learned("", 255)


def test_the_sizes_of_the_texts() -> None:
    shakespeare = load("shakespeare")
    assert shakespeare.vocabulary == 65
    assert (shakespeare.train.numel(), shakespeare.test.numel()) == (1_003_854, 111_540)
    assert shakespeare.bits_a_byte(math.log(2)) == 1.0  # one byte a character
    assert shakespeare.word_perplexity(1.0) is None
    inputs, targets = windows(shakespeare.test, 256)
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert inputs.shape == (435, 256)


def test_losses_of_pieces_are_brought_to_bytes_and_words() -> None:
    text = in_pieces("two lines", "a cat sat\n" * 20, "a cat sat\nthe cat\n", 262)
    assert text.test_bytes == 18
    assert text.test_words == 5 + 2
    whole = 1.5 * text.test.numel()  # nats of the whole text
    assert text.bits_a_byte(1.5) == pytest.approx(whole / 18 / math.log(2))
    assert text.word_perplexity(1.5) == pytest.approx(math.exp(whole / 7))


def test_a_text_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no text 'pile'; there are shakespeare and wikitext-2, wikitext-103"):
        load("pile")
