"""BLIP-2 cut in two: picture to vision-language feature y at the sender, y to text at the receiver (VLF-MSC)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import MAX_TOKENS
from multisc.errors import BadInputError, ModelError
from multisc.models.blip import DEFAULT_MAX_TOKENS, until
from multisc.models.checkpoint import check_pictures, check_words, explained, find, load_weights
from multisc.models.pictures import to_pillow

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

BEAMS = 5  # as BLIP-2's authors caption


class Blip2:
    """A BLIP-2 with a decoder-only language model, its tokenizer and image processor.

    Args:
        model: in evaluation mode.
        processor: of the same checkpoint.
    """

    def __init__(self, model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> Blip2:
        """Load a checkpoint.

        Args:
            source: its directory, or "owner/name" or "owner/name@revision" on the hub.
            device: "cpu", "cuda", ...

        Raises:
            ModelError: when it is missing, incomplete, its tokenizer or image processor is another model's, or its
                language model is no decoder-only one.
        """
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        from multisc.models.encoder_blip import EncoderBlip2, sees_through_encoder

        place = find(source)
        kind = EncoderBlip2 if sees_through_encoder(place.name) else Blip2ForConditionalGeneration
        model = load_weights(kind, place, device, ("config.json", "tokenizer.json"))
        if not model.config.use_decoder_only_language_model:
            raise ModelError(f"model {place.name}: its language model is no decoder-only one; take a BLIP-2 with OPT")
        with explained(place):
            processor = Blip2Processor.from_pretrained(place.name, backend="pil", **place.arguments)
        made = cls(model, processor)
        check_words(len(processor.tokenizer) <= len(made.table), place)
        check_pictures(processor.image_processor, model.config.vision_config.image_size, place)
        return made

    @property
    def tokens(self) -> int:
        """N, tokens of y."""
        return self.model.config.num_query_tokens

    @property
    def width(self) -> int:
        """D, values of a token of y."""
        return self.model.config.qformer_config.hidden_size

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """The language model's input embeddings, float32 of shape (V, D')."""
        return self.model.get_input_embeddings().weight.detach().float().cpu().numpy()

    def feature(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return y of pictures: the output of the Q-Former.

        Args:
            images: uint8 arrays (H, W, 3), at least 1x1.

        Returns:
            float32 of shape (len(images), N, D).

        Raises:
            BadInputError: for an array that is not a picture.
        """
        import torch

        if not images:
            return np.zeros((0, self.tokens, self.width), np.float32)
        model = self.model
        pixels = self.processor.image_processor(to_pillow(images), return_tensors="pt").pixel_values
        with torch.inference_mode():
            seen = model.vision_model(pixels.to(model.device, model.dtype)).last_hidden_state
            queries = model.query_tokens.expand(len(images), -1, -1)
            feature = model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return feature.float().cpu().numpy()

    def describe(self, features: NDArray[np.floating], max_tokens: int = DEFAULT_MAX_TOKENS) -> list[list[int]]:
        """Say in words what features tell; the same features give the same words.

        Args:
            features: y, as sent or as received, of shape (n, N, D).
            max_tokens: longest description, 1 to ``multisc.codecs.text.MAX_TOKENS``.

        Returns:
            Token ids of each description, without special tokens.

        Raises:
            BadInputError: for features of another shape or not finite, or a ``max_tokens`` outside its range.
        """
        import torch

        if not 1 <= max_tokens <= MAX_TOKENS:
            raise BadInputError(f"captions of at most {max_tokens} tokens: must be 1 to {MAX_TOKENS}")
        if features.ndim != 3 or features.shape[1:] != (self.tokens, self.width) or not np.isfinite(features).all():
            raise BadInputError(
                f"features of shape {features.shape}: must be (n, {self.tokens}, {self.width}), finite"
            )
        if not len(features):
            return []
        model, text = self.model, self.model.config.text_config
        given = torch.from_numpy(np.asarray(features, np.float32)).to(model.device)
        start = torch.full((len(given), 1), text.bos_token_id, device=model.device)
        with torch.inference_mode():
            prefix = model.language_projection(given.to(model.language_projection.weight.dtype))
            words = model.get_input_embeddings()(start)
            inputs = torch.cat([prefix.to(words.dtype), words], dim=1)
            output = model.language_model.generate(
                inputs_embeds=inputs,
                attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=model.device),
                do_sample=False,
                num_beams=BEAMS,
                max_new_tokens=max_tokens,
            )
        # The published OPT checkpoints end a caption with a line break, which is no special token.
        ends = model.language_model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        return [until(row, ends | set(self.processor.tokenizer.all_special_ids)) for row in output.tolist()]

    def caption(self, images: list[NDArray[np.uint8]], max_tokens: int = DEFAULT_MAX_TOKENS) -> list[list[int]]:
        """Describe pictures: ``describe`` of their ``feature``."""
        return self.describe(self.feature(images), max_tokens)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        return self.processor.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; special tokens vanish, surrounding white space is cut off."""
        tokenizer = self.processor.tokenizer
        known = [token for token in ids if token < len(tokenizer)]  # the table has rows that no word has
        return tokenizer.decode(known, skip_special_tokens=True).strip()
