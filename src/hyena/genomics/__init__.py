"""DNA: tokenizers, FASTA files, and causal models that score, embed, classify and generate sequences.

The command ``hyena`` does the same from a shell: see ``docs/genomics.md``.
"""

from hyena.genomics.classifying import classify
from hyena.genomics.embedding import embed, hidden_states
from hyena.genomics.fasta import FastaError, read_fasta, write_fasta
from hyena.genomics.records import Record, windows
from hyena.genomics.scoring import Score, score
from hyena.genomics.strands import augment_strands, reverse_complement, reverse_complement_tokens
from hyena.genomics.tokenizers import ByteTokenizer, DNATokenizer, Encoded, LetterError, Tokenizer, tokenizer_for
from hyena.genomics.writing import generate

__all__ = [
    "ByteTokenizer",
    "DNATokenizer",
    "Encoded",
    "FastaError",
    "LetterError",
    "Record",
    "Score",
    "Tokenizer",
    "augment_strands",
    "classify",
    "embed",
    "generate",
    "hidden_states",
    "read_fasta",
    "reverse_complement",
    "reverse_complement_tokens",
    "score",
    "tokenizer_for",
    "windows",
    "write_fasta",
]
