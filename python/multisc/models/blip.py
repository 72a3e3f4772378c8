"""The captioner of VLM-CSC: BLIP describes a picture in tokens of its own vocabulary."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import MAX_TOKENS
from multisc.errors import BadInputError
from multisc.models.checkpoint import check_pictures, check_words, explained, find, load_weights
from multisc.models.pictures import to_pillow

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration, BlipProcessor

DEFAULT_MAX_TOKENS = 32
BEAMS = 3  # as BLIP's authors caption


class BlipCaptioner:
    """A BLIP with its tokenizer and image processor.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
    """

    def __init__(self, model: BlipForConditionalGeneration, processor: BlipProcessor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> BlipCaptioner:
        """Load a checkpoint.

        Args:
            source: its directory, or "owner/name" or "owner/name@revision" on the hub.
            device: "cpu", "cuda", ...

        Raises:
            ModelError: when it is missing, incomplete, or its tokenizer or image processor is another model's.
        """
        from transformers import BlipForConditionalGeneration, BlipProcessor

        from multisc.models.encoder_blip import EncoderBlip, sees_through_encoder

        place = find(source)
        kind = EncoderBlip if sees_through_encoder(place.name) else BlipForConditionalGeneration
        model = load_weights(kind, place, device, ("config.json", "tokenizer.json"))
        with explained(place):
            processor = BlipProcessor.from_pretrained(place.name, backend="pil", **place.arguments)
        captioner = cls(model, processor)
        check_words(len(processor.tokenizer) <= len(captioner.table), place)
        check_pictures(processor.image_processor, model.config.vision_config.image_size, place)
        return captioner

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """The text decoder's input embeddings, float32 of shape (V, D)."""
        return self.model.text_decoder.get_input_embeddings().weight.detach().float().cpu().numpy()

    def caption(self, images: list[NDArray[np.uint8]], max_tokens: int = DEFAULT_MAX_TOKENS) -> list[list[int]]:
        """Describe pictures; the same pictures give the same words.

        Args:
            images: uint8 arrays (H, W, 3), at least 1x1.
            max_tokens: longest description, 1 to ``multisc.codecs.text.MAX_TOKENS``.

        Returns:
            Token ids of each description, without special tokens.

        Raises:
            BadInputError: for an array that is not a picture or a ``max_tokens`` outside its range.
        """
        import torch

        if not 1 <= max_tokens <= MAX_TOKENS:
            raise BadInputError(f"captions of at most {max_tokens} tokens: must be 1 to {MAX_TOKENS}")
        if not images:
            return []
        inputs = self.processor(images=to_pillow(images), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, num_beams=BEAMS, max_new_tokens=max_tokens)
        text = self.model.config.text_config
        ends = {*self.processor.tokenizer.all_special_ids, text.bos_token_id, text.sep_token_id, text.pad_token_id}
        return [until(row[1:], ends) for row in output.tolist()]  # the first token is the prompt

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        return self.processor.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; special tokens vanish, surrounding white space is cut off."""
        tokenizer = self.processor.tokenizer
        known = [token for token in ids if token < len(tokenizer)]  # the table has rows that no word has
        return tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=True).strip()


def until(ids: list[int], ends: set[int]) -> list[int]:
    """Return the ids before the first that is one of ``ends``."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[:position]
    return ids
