"""The corrector: BART repairs captions that the channel has damaged (paper section III-C, eq. 5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from multisc.errors import ModelError
from multisc.models.checkpoint import explained, find, load_weights

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration, BartTokenizer

BATCH = 32


class Corrector:
    """A BART fine-tuned on captions that came through our text channel.

    Its answer counts only when it is likelier than the received text itself by a margin, both in the model's own
    view: a rare word that the model would not have chosen is no reason to change a sound sentence.

    Args:
        model: in evaluation mode. Its configuration may name the margin as ``correction_margin``, a log-likelihood
            ratio in nats; 0 otherwise.
        tokenizer: of the same checkpoint.
    """

    def __init__(self, model: BartForConditionalGeneration, tokenizer: BartTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.margin = float(getattr(model.config, "correction_margin", 0.0))

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

    def gains(self, texts: list[str], answers: list[str]) -> list[float]:
        """Return log p(answer | text) - log p(text | text) of each pair, in nats.

        Args:
            texts: as received, not empty.
            answers: as many.
        """
        import torch

        inputs = self._tokens(texts)
        with torch.inference_mode():
            encoded = self.model.get_encoder()(**inputs)
            scores = []
            for targets in (answers, texts):
                labels = self._tokens(targets)
                logits = self.model(
                    attention_mask=inputs["attention_mask"], encoder_outputs=encoded, labels=labels["input_ids"]
                ).logits
                chosen = logits.float().log_softmax(-1).gather(2, labels["input_ids"][:, :, None])[:, :, 0]
                scores.append((chosen * labels["attention_mask"]).sum(dim=1))
        return (scores[0] - scores[1]).tolist()

    def _correct_batch(self, texts: list[str]) -> list[str]:
        import torch

        inputs = self._tokens(texts)
        longest = self.model.config.max_position_embeddings
        length = min(longest, inputs["input_ids"].shape[1] * 5 // 4 + 8)
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_length=length)
        answers = [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]
        gains = self.gains(texts, answers)
        return [a if gain >= self.margin else t for a, t, gain in zip(answers, texts, gains, strict=True)]

    def _tokens(self, texts: list[str]) -> Any:
        longest = self.model.config.max_position_embeddings
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        return inputs.to(self.model.device)
