"""HyenaDNA's character tokenizer for ``transformers``, with the published ids.

Dimensions: L length.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hyena.genomics.tokenizers import DNATokenizer

_NAMES = (*DNATokenizer.special, *DNATokenizer.letters)


class HyenaDNATokenizer(PreTrainedTokenizerFast):
    """One token a letter: A, C, G, T and N are 7 to 11, any other letter is ``[UNK]``; ``[SEP]`` ends a sequence.

    That is what the published ``-hf`` tokenizer does, under the same name, so that its folders find this class.
    :class:`hyena.genomics.DNATokenizer` raises for letters that it does not know.

    Args:
        model_max_length: longest row, ``[SEP]`` included.
        tokenizer_object, tokenizer_file: what was saved.
        padding_side: the published models are padded on the left.
        bos_token, eos_token, sep_token, cls_token, pad_token, mask_token, unk_token: special tokens.
        **kwargs: of ``PreTrainedTokenizerFast``.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}  # noqa: RUF012  # as in the base
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        model_max_length: int = 1_000_002,
        *,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | None = None,
        padding_side: str = "left",
        bos_token: Any = "[BOS]",
        eos_token: Any = "[SEP]",
        sep_token: Any = "[SEP]",
        cls_token: Any = "[CLS]",
        pad_token: Any = "[PAD]",
        mask_token: Any = "[MASK]",
        unk_token: Any = "[UNK]",
        **kwargs: Any,
    ) -> None:
        if tokenizer_object is None and tokenizer_file is None:
            tokenizer_object = _letters()
        super().__init__(
            tokenizer_object=tokenizer_object,
            tokenizer_file=tokenizer_file,
            model_max_length=model_max_length,
            padding_side=padding_side,
            bos_token=bos_token,
            eos_token=eos_token,
            sep_token=sep_token,
            cls_token=cls_token,
            pad_token=pad_token,
            mask_token=mask_token,
            unk_token=unk_token,
            **kwargs,
        )


def _letters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(_NAMES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A [SEP] $B [SEP]", special_tokens=[("[SEP]", _NAMES.index("[SEP]"))]
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
