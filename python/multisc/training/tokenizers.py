"""Byte-pair tokenizers trained on the captions, in the formats of Qwen2 and BART."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, BartTokenizer, CLIPTokenizer, Qwen2Tokenizer

IMAGE_TOKEN = "<image>"


def train_bpe(sentences: Iterable[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a byte-level byte-pair encoding.

    The alphabet is printable ASCII and the newline, not all 256 bytes: every row of the vocabulary is a code word
    of the text channel, and a row that no caption uses only crowds the others.

    Args:
        sentences: the corpus.
        size: entries of the vocabulary, merges included.

    Returns:
        The vocabulary (entry -> id, ids 0 to size - 1) and the merges, most frequent first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    printable = string.digits + string.ascii_letters + string.punctuation + " \n"
    initial = sorted({c for piece, _ in alphabet.pre_tokenize_str(printable) for c in piece})
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=initial, limit_alphabet=len(initial), show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(a, b) for a, b in model["merges"]]


def words_of(tokenizer: Tokenizer, sentences: Iterable[str]) -> set[str]:
    """Return the words of sentences, as a tokenizer normalises and cuts them.

    Trainers number the letters that go on with a word or end it in another order each time. Who names them as
    special tokens, sorted, trains the same tokenizer each time; a run could not be resumed else.
    """
    normalised = (tokenizer.normalizer.normalize_str(sentence) for sentence in sentences)
    return {word for sentence in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(sentence)}


def qwen2_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> Qwen2Tokenizer:
    """Return a Qwen2 tokenizer over the encoding, with the end of text and ``<image>`` as special tokens."""
    return Qwen2Tokenizer(
        vocab=dict(vocab),
        merges=list(merges),
        model_max_length=max_length,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def bart_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]], max_length: int) -> BartTokenizer:
    """Return a BART tokenizer over the encoding, with BART's five special tokens in BART's places."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    shifted = {token: index for index, token in enumerate(special)}
    shifted |= {token: index + len(special) for token, index in vocab.items()}
    shifted["<mask>"] = len(shifted)
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    return BartTokenizer(vocab=shifted, merges=list(merges), mask_token=mask, model_max_length=max_length)


def train_clip_tokenizer(sentences: Iterable[str], size: int, max_length: int) -> CLIPTokenizer:
    """Learn a byte-pair encoding in CLIP's format that can spell any printable ASCII text.

    Args:
        sentences: the corpus.
        size: entries of the vocabulary.
        max_length: tokens of a prompt, its start and end included.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    empty = CLIPTokenizer()
    empty.backend_tokenizer.post_processor = None
    alphabet = string.digits + string.ascii_lowercase + string.punctuation
    # Each character as a word's end and as its middle.
    corpus = [*(f"{c} {c}{c} " for c in alphabet for _ in range(3)), *sentences]
    last = sorted({f"{word[-1]}</w>" for word in words_of(empty.backend_tokenizer, corpus)})
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[start, end, *last], end_of_word_suffix="</w>", show_progress=False
    )
    empty.backend_tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(empty.backend_tokenizer.to_str())["model"]
    merges = [(a, b) for a, b in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=max_length)
