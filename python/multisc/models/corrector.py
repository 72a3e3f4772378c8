"""The corrector: BART repairs captions that the channel has damaged (paper section III-C, eq. 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multisc.errors import ModelError
from multisc.models.checkpoint import explained, find, load_weights

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration, BartTokenizer

BATCH = 32


class Corrector:
    """A BART fine-tuned on captions that came through our text channel.

    Args:
        model: in evaluation mode.
        tokenizer: of the same checkpoint.
    """

    def __init__(self, model: BartForConditionalGeneration, tokenizer: BartTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

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
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            raise ModelError(
                f"model {place.name}: its tokenizer is another model's; copy or fetch the whole checkpoint again"
            )
        return cls(model, tokenizer)

    def correct(self, texts: list[str]) -> list[str]:
        """Return each text repaired; an empty text stays empty.

        A text longer than the model's positions is cut there. The answer is at most a quarter and eight tokens longer
        than the longest text of its batch. The same texts give the same answers.

        Args:
            texts: any strings.
        """
        answers = list(texts)
        # Neighbours in length share a batch, so that little is spent on padding.
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            for index, answer in zip(chosen, self._correct_batch([texts[i] for i in chosen]), strict=True):
                answers[index] = answer
        return answers

    def _correct_batch(self, texts: list[str]) -> list[str]:
        import torch

        longest = self.model.config.max_position_embeddings
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        inputs = inputs.to(self.model.device)
        length = min(longest, inputs["input_ids"].shape[1] * 5 // 4 + 8)
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_length=length)
        return [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
