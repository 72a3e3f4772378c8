"""The corrector: BART repairs captions that the channel has damaged (paper section III-C, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import Reading, printable
from multisc.models.checkpoint import check_words, explained, find, load_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BartForConditionalGeneration, BartTokenizer, PreTrainedTokenizerBase

BATCH = 32
WEIGHED = 12  # answers to a text that are held against what the channel heard
PORTION = 1024  # tokens whose likelihoods are computed at a time: 200 MB for the words of the published BART
_IMPOSSIBLE = -1e9


class Corrector:
    """A BART fine-tuned on captions that came through our text channel.

    Of a text alone, its answer counts only when it is likelier than the text itself by a margin, both in the model's
    own view: a rare word that the model would not have chosen is no reason to change a sound sentence. Of a reading,
    which says how likely the channel finds each alternative, it looks for the answer that model and channel together
    find likeliest, and leaves alone what the channel is certain of: word by word where the model has the reading's
    tokens, else among its likeliest answers to the text.

    Args:
        model: in evaluation mode. Its configuration may name the margin as ``correction_margin``, a log-likelihood
            ratio in nats, 0 otherwise; and as ``channel_weight`` what the channel's log-likelihood counts for beside
            the model's, 1 otherwise: less, as the model knows the likeliest text already.
        tokenizer: of the same checkpoint.
    """

    def __init__(self, model: BartForConditionalGeneration, tokenizer: BartTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.margin = float(getattr(model.config, "correction_margin", 0.0))
        self.channel_weight = float(getattr(model.config, "channel_weight", 1.0))

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> Corrector:
        """Load a checkpoint.

        Args:
            source: its directory, or "owner/name" or "owner/name@revision" on the hub.
            device: "cpu", "cuda", ...

        Raises:
            ModelError: when it is missing, incomplete, or its tokenizer is another model's.
        """
        from transformers import BartForConditionalGeneration, BartTokenizer

        place = find(source)
        model = load_weights(BartForConditionalGeneration, place, device, ("config.json", "tokenizer.json"))
        with explained(place):
            tokenizer = BartTokenizer.from_pretrained(place.name, **place.arguments)
        check_words(len(tokenizer) <= model.get_input_embeddings().num_embeddings, place)
        return cls(model, tokenizer)

    def correct(self, texts: list[str]) -> list[str]:
        """Return each text repaired; an empty text stays empty.

        A text longer than the model's positions is cut there. The answer is at most a quarter and eight tokens longer
        than the longest text of its batch. The same texts give the same answers.

        Args:
            texts: any strings.
        """
        todo = [index for index, text in enumerate(texts) if text.strip()]
        return self._replace(texts, todo, lambda chosen: self._correct_texts([texts[i] for i in chosen]))

    def tokens_of(self, speaker: PreTrainedTokenizerBase, count: int) -> NDArray[np.int64] | None:
        """Return what each token of another model's tokenizer is here, if both divide texts alike.

        Args:
            speaker: the tokenizer of the model whose tokens travel.
            count: rows of that model's table, at least as many as its tokenizer has tokens.

        Returns:
            int64 array of shape (count,), -1 where there is no such token here; None when fewer than nine in ten of
            them are known here.
        """
        own = self.tokenizer.get_vocab()
        special = set(speaker.all_special_tokens) | set(self.tokenizer.all_special_tokens)
        tokens = np.full(count, -1, np.int64)
        for token, index in speaker.get_vocab().items():
            if token not in special:
                tokens[index] = own.get(token, -1)
        return tokens if np.mean(tokens >= 0) > 0.9 else None

    def correct_readings(
        self, readings: Sequence[Reading], tokens: NDArray[np.int64] | None, spell: Callable[[str], list[int]]
    ) -> list[str]:
        """Return each caption repaired; see the class. The same readings give the same answers.

        Args:
            readings: what was received. One whose ids, or whose text in this model's tokens, are more than the
                model has positions for stays as it is.
            tokens: from ``tokens_of``, for readings whose ids are that tokenizer's. None when they are not, or when
                there is no such table.
            spell: from a text to the ids that it is sent as.
        """
        texts = [reading.text for reading in readings]
        doubtful = [i for i, reading in enumerate(readings) if not reading.certain]
        longest = self.model.config.max_position_embeddings
        if tokens is None:
            todo = [i for i in doubtful if texts[i].strip() and len(self.tokenizer(texts[i])["input_ids"]) <= longest]
            return self._replace(texts, todo, lambda chosen: self._weigh([readings[i] for i in chosen], spell))
        todo = [i for i in doubtful if len(readings[i].ids) <= longest - 2]
        return self._replace(texts, todo, lambda chosen: self._fuse([readings[i] for i in chosen], tokens))

    def gains(self, texts: list[str], answers: list[str]) -> list[float]:
        """Return log p(answer | text) - log p(text | text) of each pair, in nats.

        Args:
            texts: as received, not empty.
            answers: as many.
        """
        own = list(dict.fromkeys(texts))
        scores = self._log_likelihoods([*texts, *own], [*answers, *own])
        of_text = dict(zip(own, scores[len(texts) :], strict=True))
        return [score - of_text[text] for score, text in zip(scores, texts, strict=False)]

    def _log_likelihoods(self, texts: list[str], answers: list[str]) -> list[float]:
        """Return log p(answer | text) of each pair, in nats."""
        import torch

        if not texts:
            return []
        size = max(1, PORTION // self._tokens([*texts, *answers])["input_ids"].shape[1])
        scores: list[float] = []
        for start in range(0, len(texts), size):
            labels = self._tokens(answers[start : start + size])
            with torch.inference_mode():
                inputs = self._tokens(texts[start : start + size])
                logits = self.model(**inputs, labels=labels["input_ids"]).logits.float()
            chosen = logits.gather(2, labels["input_ids"][:, :, None])[:, :, 0] - logits.logsumexp(-1)
            scores += (chosen * labels["attention_mask"]).sum(dim=1).tolist()
        return scores

    def _replace(self, texts: Sequence[str], todo: list[int], correct: Callable[[list[int]], list[str]]) -> list[str]:
        """Correct the texts of some indices; neighbours in length share a batch, so that padding costs little."""
        answers = list(texts)
        order = sorted(todo, key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for index, answer in zip(chosen, correct(chosen), strict=True):
                answers[index] = answer
        return answers

    def _correct_texts(self, texts: list[str]) -> list[str]:
        answers = self._generate(texts)
        gains = self.gains(texts, answers)
        return [a if gain >= self.margin else t for a, t, gain in zip(answers, texts, gains, strict=True)]

    def _weigh(self, readings: list[Reading], spell: Callable[[str], list[int]]) -> list[str]:
        """Of the likeliest answers to a text, and the text, the one that model and channel find likeliest.

        An answer of another number of ids was not sent, but may be nearer to what was: where none that may have been
        sent is better than the text, the likeliest of those that differ in length by a tenth at most counts as in
        ``correct``.
        """
        texts = [reading.text for reading in readings]
        answers = self._generate(texts, num_beams=WEIGHED, num_return_sequences=WEIGHED)
        pairs = [
            (row, answer)
            for row, text in enumerate(texts)
            for answer in dict.fromkeys(answers[row * WEIGHED : (row + 1) * WEIGHED])
            if answer != text
        ]
        gains = self.gains([texts[row] for row, _ in pairs], [answer for _, answer in pairs])
        # Not 0 where a tokenizer divides the text in another way than it was sent.
        heard_texts = [
            reading.log_likelihood(spell(text)) or 0.0 for reading, text in zip(readings, texts, strict=True)
        ]
        sent = [(0.0, text) for text in texts]
        near = [(self.margin, text) for text in texts]
        for (row, answer), gain in zip(pairs, gains, strict=True):
            reading, ids = readings[row], spell(answer)
            heard = reading.log_likelihood(ids)
            if heard is not None:
                score = gain + self.channel_weight * (heard - heard_texts[row])
                sent[row] = max(sent[row], (score, answer))
            elif abs(len(ids) - len(reading.ids)) <= len(reading.ids) // 10:
                near[row] = max(near[row], (gain, answer))
        return [best if score > 0.0 else other for (score, best), (_, other) in zip(sent, near, strict=True)]

    def _fuse(self, readings: list[Reading], tokens: NDArray[np.int64]) -> list[str]:
        """Search word by word for the answer that model and channel find likeliest."""
        channel = _ChannelEvidence(readings, tokens, self.channel_weight, self.model)
        longest = max(len(reading.ids) for reading in readings) + 3
        return self._generate([reading.text for reading in readings], max_length=longest, logits_processor=[channel])

    def _generate(self, texts: list[str], **how: Any) -> list[str]:
        import torch

        inputs = self._tokens(texts)
        longest = min(self.model.config.max_position_embeddings, inputs["input_ids"].shape[1] * 5 // 4 + 8)
        with torch.inference_mode():
            output = self.model.generate(**inputs, **{"do_sample": False, "max_length": longest} | how)
        return [printable(text) for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]

    def _tokens(self, texts: list[str]) -> Any:
        longest = self.model.config.max_position_embeddings
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        return inputs.to(self.model.device)


class _ChannelEvidence:
    """Adds to the log-likelihood of each word what the channel says of it in its place.

    The number of tokens is known from what was received. A token that is not among a place's alternatives counts as
    the least likely of them.

    Args:
        readings: one for each text of the batch, none of them empty.
        tokens: the model's token for each id of a reading, -1 where there is none.
        weight: of the channel's log-likelihood.
        model: that generates; from the second of its tokens on, which follows the start of a sentence, they are the
            caption's.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        tokens: NDArray[np.int64],
        weight: float,
        model: BartForConditionalGeneration,
    ) -> None:
        import torch

        def put(values: NDArray) -> Tensor:
            return torch.from_numpy(values).to(model.device)

        vocabulary, count = model.config.vocab_size, max(len(reading.ids) for reading in readings)
        known = np.full(vocabulary, _IMPOSSIBLE, np.float32)
        known[tokens[tokens >= 0]] = 0.0
        ids = np.full((len(readings), count, max(reading.ids.shape[1] for reading in readings)), -1, np.int64)
        evidence = np.zeros(ids.shape, np.float32)
        least = np.zeros(ids.shape[:2], np.float32)
        for row, reading in enumerate(readings):
            places, ranks = reading.ids.shape
            ids[row, :places, :ranks] = tokens[reading.ids]
            evidence[row, :places, :ranks] = weight * reading.log_likelihoods
            least[row, :places] = weight * reading.log_likelihoods[:, -1]
        # What has no token here goes into a column of its own, behind the vocabulary.
        self._ids, self._evidence = put(np.where(ids >= 0, ids, vocabulary)), put(evidence)
        self._known, self._least = put(np.append(known, 0.0).astype(np.float32)), put(least)
        self._lengths = put(np.array([len(reading.ids) for reading in readings]))
        self._end = put(np.where(np.arange(vocabulary) == model.config.eos_token_id, 0.0, _IMPOSSIBLE))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        place = input_ids.shape[1] - 2
        if place < 0:
            return scores
        heard = self._end.expand(len(self._lengths), -1).to(scores.dtype)
        if place < self._ids.shape[1]:
            row = self._known + self._least[:, place, None]
            row = row.scatter(1, self._ids[:, place], self._evidence[:, place])[:, :-1]
            heard = torch.where((place < self._lengths)[:, None], row.to(scores.dtype), heard)
        return scores + heard.repeat_interleave(len(scores) // len(heard), 0)
