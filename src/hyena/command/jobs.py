"""The subcommands: what each computes for a group of records, and the loop that they share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hyena
from hyena.command.characters import find_checkpoint, load_characters, write_text
from hyena.command.devices import device_of
from hyena.command.inputs import Inputs
from hyena.command.models import check_exists, dtype_of, fingerprint, open_model
from hyena.command.pretrained import is_pretrained, load_pretrained
from hyena.genomics import Record
from hyena.genomics.batches import groups
from hyena.genomics.classifying import Classifying
from hyena.genomics.embedding import Embedding
from hyena.genomics.progress import Progress
from hyena.genomics.rows import Rows
from hyena.genomics.scoring import Scoring
from hyena.genomics.strands import reverse_complement
from hyena.genomics.tables import Column, Table
from hyena.genomics.tokenizers import ByteTokenizer, DNATokenizer, Tokenizer, tokenizer_for
from hyena.genomics.writing import Writing

# Arguments that change where a run writes and what it shows, not what it computes.
_WITHOUT_EFFECT = {"output", "overwrite", "quiet", "fasta", "model"}
_HEADS = {"embed": "auto", "classify": "auto"}
_KEYS = [Column("file", str), Column("record", str)]


class Job(NamedTuple):
    """One run.

    Args:
        columns: of the table, after file and record.
        compute: rows of a group of records, given how many records came before; each record has as many rows.
        rows: how a record becomes tokens.
        directions: the strands that are read.
        each: rows of a record.
        cost: of a record, in positions.
    """

    columns: list[Column]
    compute: Callable[[list[Record], int], list[list[Any]]]
    rows: Rows
    directions: tuple[str, ...]
    each: int
    cost: Callable[[Record], int]


def run(given: argparse.Namespace) -> None:
    """Does what the arguments say.

    Raises:
        ValueError: bad input, with file, line and record.
        OSError: files that cannot be read or written.
        ModuleNotFoundError: Parquet without pyarrow.
    """
    if getattr(given, "prompt", ()) and (given.alphabet or given.iupac_to_n):
        option = "--iupac-to-n" if given.alphabet is None else f"--alphabet {given.alphabet}"
        raise ValueError(f"{option} is of the records of FASTA files, not of a --prompt: leave it away")
    found = _language_model(given)
    inputs = _inputs(given)
    survey = inputs.survey()
    if found is None:
        head = _HEADS.get(given.command, "lm")
        model = open_model(given.model, given.config, head=head, device=given.device, dtype=given.dtype)
        tokenizer = _tokenizer(model, inputs.alphabet)
    else:
        model, tokenizer = found
    if given.command == "generate":
        if given.output is None:
            write_text(given, model, tokenizer, inputs.records())
            return
        if given.window is not None:
            raise ValueError(f"--window {given.window} is for text on standard output: leave it or --output away")
    job = _JOBS[given.command](given, model, tokenizer)
    for record in (survey.longest, survey.shortest):
        job.rows.check(record, job.directions)
    settings = {name: value for name, value in vars(given).items() if name not in _WITHOUT_EFFECT}
    settings |= {
        "hyena": hyena.__version__,
        "device": str(model.device),
        "model": {"path": given.model, "files": fingerprint(given.model)},
        "inputs": inputs.fingerprint(),
    }
    table = Table(given.output, _KEYS + job.columns, settings, overwrite=given.overwrite)
    samples = getattr(given, "samples", 1)
    try:
        if not table.complete:
            with Progress(survey.letters * samples, "letters", shown=not given.quiet) as bar:
                _fill(table, job, _repeated(inputs.records(), samples), given.max_tokens, bar)
            table.finish()
    finally:
        table.close()
    if not given.quiet:
        print(f"{given.output}: {survey.records * job.each * samples} rows, complete", file=sys.stderr)


def _language_model(given: argparse.Namespace) -> tuple[Any, Tokenizer] | None:
    """The model of text and its tokenizer that --model may be; sets the defaults of arguments for it or for DNA."""
    check_exists(given.model)
    file = find_checkpoint(given.model) if given.config is None else None
    pretrained = file is None and given.config is None and is_pretrained(given.model)
    is_text = file is not None or pretrained
    given.alphabet = given.alphabet or ("any" if is_text else "ACGTN")
    if not is_text:
        if given.command == "generate":
            given.letters = given.letters or "ACGT"
        return None
    at = device_of(given.device), dtype_of(given.dtype)
    model, tokenizer = load_pretrained(given.model, *at) if file is None else load_characters(file, *at)
    if given.command == "generate" and not given.prompt and not given.fasta:
        given.prompt = [tokenizer.start]
    return model, tokenizer


def _fill(table: Table, job: Job, records: Iterator[Record], max_tokens: int, bar: Progress) -> None:
    """Computes the rows that are not there yet, group by group, in the groups of a run without interruption."""
    known, before = table.done_keys(), 0
    for group in groups(records, job.cost, max_tokens):
        size = job.each
        for record in group:
            for _ in range(size):
                key = next(known, None)
                if key is not None and key != (record.file, record.name):
                    raise ValueError(
                        f"{table.part} has record {key[1]!r} of {key[0]!r} in the place of {record}; begin again with "
                        "--overwrite"
                    )
        have = table.done - before * size
        if have < len(group) * size:
            rows = job.compute(group, before)
            keyed = [[group[i // size].file, group[i // size].name, *row] for i, row in enumerate(rows)]
            table.append(keyed[max(have, 0) :])
        else:
            bar.before += sum(map(len, group))
        before += len(group)
        bar.add(sum(map(len, group)))


def _repeated(records: Iterator[Record], times: int) -> Iterator[Record]:
    for record in records:
        for _ in range(times):
            yield record


def _inputs(given: argparse.Namespace) -> Inputs:
    prompts = tuple(getattr(given, "prompt", ()))
    if prompts and given.fasta:
        raise ValueError("give FASTA files or --prompt, not both")
    if not prompts and not given.fasta:
        raise ValueError("give FASTA files, or --prompt LETTERS")
    if len(set(given.fasta)) < len(given.fasta):
        raise ValueError(f"a file is given twice: {' '.join(given.fasta)}")
    alphabet = None if given.alphabet == "any" else given.alphabet
    if alphabet is not None and (not alphabet or not alphabet.isascii()):
        raise ValueError(f"--alphabet must be ASCII letters or 'any', got {given.alphabet!r}")
    if given.upper and alphabet is not None:
        alphabet = alphabet.upper()
    if getattr(given, "strands", "forward") != "forward" and alphabet is not None:
        reverse_complement(alphabet)  # says which letter has no complement
    if given.command == "generate":  # its window is of the text
        return Inputs(tuple(given.fasta), prompts, alphabet, given.upper, given.iupac_to_n)
    window, step = getattr(given, "window", None), getattr(given, "step", None)
    if step is not None and window is None:
        raise ValueError(f"--step {step} is of pieces: give --window, too")
    return Inputs(tuple(given.fasta), prompts, alphabet, given.upper, given.iupac_to_n, window, step)


def _tokenizer(model: Any, alphabet: str | None) -> Tokenizer:
    tokenizer = tokenizer_for(model)
    if isinstance(tokenizer, ByteTokenizer):
        return ByteTokenizer(alphabet)
    if alphabet is not None and (odd := set(alphabet) - set(DNATokenizer.letters)):
        raise ValueError(
            f"this model's alphabet is {DNATokenizer.letters}, so --alphabet cannot have {' '.join(sorted(odd))}"
        )
    return tokenizer


def _score(given: argparse.Namespace, model: Any, tokenizer: Tokenizer) -> Job:
    scoring = Scoring(model, tokenizer, given.strands, given.start_token, max_tokens=given.max_tokens)
    columns = [Column("letters", int), Column("predicted", int), Column("log_likelihood", float), Column("mean", float)]
    both = scoring.directions if len(scoring.directions) > 1 else ()
    columns += [Column(f"log_likelihood_{strand}", float) for strand in both]

    def compute(records: list[Record], before: int) -> list[list[Any]]:
        return [
            [len(record), s.letters, s.log_likelihood, s.mean, *(s.strands[strand] for strand in both)]
            for record, s in zip(records, scoring.group(records), strict=True)
        ]

    return Job(columns, compute, scoring.rows, scoring.directions, 1, len)


def _embed(given: argparse.Namespace, model: Any, tokenizer: Tokenizer) -> Job:
    layers = [int(name) if name.isdecimal() else name for name in given.layers.split(",")]
    embedding = Embedding(model, layers, tokenizer, given.pooling, given.strands, given.max_tokens)
    width = model.config.d_model
    columns = [Column("letters", int), Column("layer", str), *(Column(f"e{i}", float) for i in range(width))]

    def compute(records: list[Record], before: int) -> list[list[Any]]:
        return [
            [len(record), str(layer), *state.tolist()]
            for record, states in zip(records, embedding.group(records), strict=True)
            for layer, state in zip(embedding.layers, states, strict=True)
        ]

    return Job(columns, compute, embedding.rows, embedding.directions, len(layers), len)


def _classify(given: argparse.Namespace, model: Any, tokenizer: Tokenizer) -> Job:
    classifying = Classifying(model, tokenizer, given.strands, given.max_tokens)
    columns = [Column("letters", int), *(Column(f"p{i}", float) for i in range(model.config.num_classes))]

    def compute(records: list[Record], before: int) -> list[list[Any]]:
        likely = classifying.group(records).softmax(1).tolist()
        return [[len(record), *row] for record, row in zip(records, likely, strict=True)]

    return Job(columns, compute, classifying.rows, classifying.directions, 1, len)


def _generate(given: argparse.Namespace, model: Any, tokenizer: Tokenizer) -> Job:
    if given.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {given.samples}")
    sampling = {"temperature": given.temperature, "top_k": given.top_k, "top_p": given.top_p}
    writing = Writing(
        model, given.length, tokenizer, given.letters, given.start_token, given.seed, given.max_tokens, sampling
    )
    columns = [Column("sample", int), Column("prompt_letters", int), Column("sequence", str)]

    def compute(records: list[Record], before: int) -> list[list[Any]]:
        return [
            [(before + i) % given.samples + 1, len(record), text]
            for i, (record, text) in enumerate(zip(records, writing.group(records, before), strict=True))
        ]

    return Job(columns, compute, writing.rows, ("forward",), 1, lambda record: len(record) + given.length)


_JOBS: dict[str, Callable[[argparse.Namespace, Any, Tokenizer], Job]] = {
    "score": _score,
    "embed": _embed,
    "classify": _classify,
    "generate": _generate,
}
