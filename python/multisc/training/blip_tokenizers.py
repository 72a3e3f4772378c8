"""Tokenizers of the embedded BLIP and BLIP-2, trained on the captions, in the formats of BERT and GPT-2."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, BertTokenizer, GPT2Tokenizer

from multisc.training.tokenizers import IMAGE_TOKEN, words_of

START = "[DEC]"  # BLIP's token before a caption


def bert_tokenizer(sentences: Iterable[str], size: int, max_length: int) -> BertTokenizer:
    """Learn word pieces in BERT's format, with BLIP's token for the start of a caption as the last entry.

    Args:
        sentences: the corpus.
        size: entries of the vocabulary without the last one.
        max_length: tokens of a text at most.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = string.ascii_lowercase + string.digits + string.punctuation
    # Each character as a word's end and as its beginning, so that any ASCII text can be spelt.
    spelt = [f"{c} {c}{c} " for c in letters] * 3
    corpus = [*spelt, *sentences]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = sorted({f"##{letter}" for word in words_of(tokenizer, corpus) for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special + inner, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=vocab, bos_token=START, model_max_length=max_length)


def opt_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> GPT2Tokenizer:
    """Return a tokenizer with OPT's four special tokens in OPT's places, and BLIP-2's ``<image>`` as the last entry.

    Args:
        vocab: entry -> id from 0, as ``multisc.training.tokenizers.train_bpe`` gives it.
        merges: of the encoding.
        max_length: tokens of a text at most.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    shifted = {token: index for index, token in enumerate(special)}
    shifted |= {token: index + len(special) for token, index in vocab.items()}
    tokenizer = GPT2Tokenizer(
        vocab=shifted,
        merges=list(merges),
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        model_max_length=max_length,
    )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    return tokenizer
