"""Generation from prompts of letters: greedy text by definition, the letters drawn, seeds and long prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.dna import L_MAX, MODELS, TOKEN, build, tokens
from hyena.genomics import DNATokenizer, Record, generate

BUILT = {name: build(name) for name in MODELS}


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: str, number: int, letters: str, start: int | None) -> str:
    row, text = tokens(prompt), ""
    if start is not None:
        row = torch.cat([torch.tensor([[start]]), row], dim=1)
    for _ in range(number):
        logits = model(row)[0, -1]
        text += max(letters, key=lambda letter: float(logits[TOKEN[letter]]))
        row = torch.cat([row, tokens(text[-1])], dim=1)
    return text


@pytest.mark.parametrize("name", MODELS)
@given(
    prompts=st.lists(st.text("ACGTN", min_size=1, max_size=20), min_size=1, max_size=4),
    max_tokens=st.sampled_from([1, 6, 50, 1000]),
    start=st.sampled_from([None, 2]),
)
def test_greedy(name: str, prompts: list[str], max_tokens: int, start: int | None) -> None:
    model = BUILT[name]
    got = generate(
        model,
        prompts,
        5,
        tokenizer=DNATokenizer(),
        temperature=0,
        start_token=start,
        max_tokens=max_tokens,
        letters="GAT",
    )
    assert got == [greedy(model, prompt, 5, "GAT", start) for prompt in prompts]


def test_only_the_letters_asked_for_are_drawn() -> None:
    texts = generate(build(), ["ACGT"] * 8, 40, letters="CT", seed=0)
    assert {letter for text in texts for letter in text} == {"C", "T"}
    assert all(len(text) == 40 for text in texts)
    assert len(set(texts)) > 1
    # All tokens: special ones are drawn, and left out of the text.
    assert any(len(text) < 40 for text in generate(build(), ["ACGT"] * 8, 40, letters=None, seed=0))


def test_seeds() -> None:
    model, prompts = build(), ["ACGT", "G", "TTA"]
    first = generate(model, prompts, 20, seed=3)
    assert generate(model, prompts, 20, seed=3) == first
    assert generate(model, prompts, 20, seed=4) != first
    # What a prompt becomes depends on the batch that it is in, not on those before.
    assert generate(model, prompts, 20, seed=3, max_tokens=1)[0] == generate(model, prompts[:1], 20, seed=3)[0]


def test_bad_prompts_and_arguments() -> None:
    model = build()
    with pytest.raises(
        ValueError, match=r"record 'b' has 60 letters, .* l_max=64: with 10 new letters give it at most 55, or"
    ):
        generate(model, [Record("b", "A" * 60)], 10)
    assert len(generate(model, ["A" * 55], 10)[0]) == 10
    with pytest.raises(ValueError, match=r"record '0': 65 new letters do not fit, this model's context is l_max=64"):
        generate(model, ["A"], 65)
    assert len(generate(model, ["A"], 64)[0]) == 64
    assert L_MAX == 64
    for prompts, keywords, error in (
        ([""], {}, "record '0' is empty"),
        (["AX"], {}, "'X' at position 2"),
        (["A"], {"letters": "ACX"}, "'X' at position 1"),
        (["A"], {"letters": "AA"}, "letters must be different letters, got 'AA'"),
        (["A"], {"letters": ""}, "letters must be different letters, got ''"),
        (["A"], {"temperature": -1}, "temperature must not be negative"),
        (["A"], {"start_token": 99}, "start_token must be a token"),
    ):
        with pytest.raises(ValueError, match=error):
            generate(model, prompts, 3, **keywords)
    with pytest.raises(ValueError, match="max_new_tokens must be an integer of at least 1, got 0"):
        generate(model, ["A"], 0)
    with pytest.raises(ValueError, match="must be one token; pass a tokenizer without special tokens"):
        generate(model, ["A"], 3, tokenizer=DNATokenizer(special_tokens=True))
