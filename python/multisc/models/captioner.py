"""The captioner: LLaVA describes pictures in tokens (paper section III-B, eq. 2)."""

from __future__ import annotations

import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from multisc.codecs.text import MAX_TOKENS
from multisc.errors import BadInputError, ModelError
from multisc.models.checkpoint import check_pictures, check_words, explained, find, load_weights
from multisc.models.consensus import consensus
from multisc.models.pictures import to_pillow

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

PAPER_QUERY = "Relay a brief, clear account of the picture shown."
DEFAULT_MAX_TOKENS = 48
MAX_SAMPLES = 64
# Image tokens beside the patches: CLIP has a class token, our encoder two vectors of the whole picture.
_BESIDE_PATCHES = {"clip_vision_model": 1, "siglip_vision_model": 0, "efficientnet_lite": 2}


class Captioner:
    """A LLaVA with its tokenizer and image processor.

    It says the likeliest words one after the other. Where the model's configuration names ``consensus_samples``, it
    draws so many descriptions of each picture and says the one that agrees best with the others: a small model, not
    sure of what it sees, describes pictures better so.

    Args:
        model: in evaluation mode. Its configuration may name ``consensus_samples``, 2 to ``MAX_SAMPLES``, and
            ``consensus_temperature``, above 0 and at most 2.
        processor: of the same checkpoint.

    Raises:
        ModelError: for numbers outside these ranges.
    """

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.model = model
        self.processor = processor
        self.samples = getattr(model.config, "consensus_samples", 1)
        self.temperature = getattr(model.config, "consensus_temperature", 1.0)
        if type(self.samples) is not int or not 1 <= self.samples <= MAX_SAMPLES:
            raise ModelError(f"consensus_samples {self.samples!r} in config.json: must be 1 to {MAX_SAMPLES}")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature <= 2:
            raise ModelError(f"consensus_temperature {self.temperature!r} in config.json: must be above 0, at most 2")

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> Captioner:
        """Load a checkpoint.

        Args:
            source: its directory, or "owner/name" or "owner/name@revision" on the hub.
            device: "cpu", "cuda", ...

        Raises:
            ModelError: when it is missing, incomplete, its tokenizer or image processor is another model's, or its
                chat template does not show the picture.
        """
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

        place = find(source)
        model = load_weights(LlavaForConditionalGeneration, place, device, ("config.json", "tokenizer.json"))
        with explained(place):
            # The Pillow backend on purpose: torchvision need not be installed, and both ends prepare pictures alike.
            processor = LlavaProcessor.from_pretrained(place.name, backend="pil", **place.arguments)
        processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
        if not processor.chat_template:
            raise ModelError(f"model {place.name}: its chat template is missing; {place.remedy}")
        vision = model.config.vision_config
        if vision.model_type in _BESIDE_PATCHES:
            # Releases before 4.47 did not write these down; they are the model's in any case.
            processor.patch_size = vision.patch_size
            processor.num_additional_image_tokens = _BESIDE_PATCHES[vision.model_type]
            processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
            check_pictures(processor.image_processor, vision.image_size, place)
        captioner = cls(model, processor)
        fits = len(processor.tokenizer) <= len(captioner.table)
        check_words(fits and processor.image_token_id == model.config.image_token_id, place)
        with explained(place):  # a chat template that is none, or has no picture
            captioner._prompt([np.zeros((1, 1, 3), np.uint8)], PAPER_QUERY)
        return captioner

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """The language model's input embeddings, float32 of shape (V, D)."""
        return self.model.get_input_embeddings().weight.detach().float().cpu().numpy()

    def caption(
        self, images: list[NDArray[np.uint8]], query: str = PAPER_QUERY, max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> list[list[int]]:
        """Describe pictures; the same pictures give the same words.

        Args:
            images: uint8 arrays (H, W, 3), at least 1x1.
            query: the request to the model.
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
        inputs = self._prompt(images, query)
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.samples > 1:
            inputs = {name: value.repeat_interleave(self.samples, 0) for name, value in inputs.items()}
            how["logits_processor"] = [_Chance(images, self.samples, self.temperature)]
        with torch.inference_mode():
            output = self.model.generate(**inputs, **how, max_new_tokens=max_tokens)
        special = set(self.processor.tokenizer.all_special_ids)
        said = [_until_special(row, special) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
        groups = [said[start : start + self.samples] for start in range(0, len(said), self.samples)]
        return [group[consensus([self.decode(ids) for ids in group])] for group in groups]

    def log_likelihood(
        self, images: list[NDArray[np.uint8]], captions: list[str], query: str = PAPER_QUERY
    ) -> NDArray[np.float32]:
        """How likely the model would describe each picture by its caption.

        Args:
            images: uint8 arrays (H, W, 3), at least 1x1.
            captions: one for each picture, with at least one token.
            query: the request to the model.

        Returns:
            Mean of log p(token) over the caption's tokens, float32 of shape (len(images),).

        Raises:
            BadInputError: for an array that is not a picture, an empty caption, or unequal numbers of the two.
        """
        import torch

        ids = [self.encode(caption) for caption in captions]
        if len(ids) != len(images) or not all(ids):
            raise BadInputError(f"{len(images)} pictures, {len(ids)} captions: each needs one that is not empty")
        if not images:
            return np.zeros(0, np.float32)
        inputs = self._prompt(images, query)
        longest = max(map(len, ids))
        padded = torch.tensor([row + [row[0]] * (longest - len(row)) for row in ids], device=self.model.device)
        asked = torch.tensor([[k < len(row) for k in range(longest)] for row in ids], device=self.model.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], padded], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], asked.to(inputs["attention_mask"])], 1)
        with torch.inference_mode():
            # Those of the prompt are not wanted: with 729 image tokens and Qwen1.5's words they would take gigabytes.
            logits = self.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(2, padded[..., None])[..., 0]
        return ((chosen * asked).sum(1) / asked.sum(1)).cpu().numpy()

    def _prompt(self, images: list[NDArray[np.uint8]], query: str) -> Any:
        """The model's inputs: a query with each picture."""
        content = [{"type": "image"}, {"type": "text", "text": query}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self.processor(
            images=to_pillow(images),
            text=[prompt] * len(images),
            return_tensors="pt",
        )
        return inputs.to(self.model.device, self.model.dtype)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        return self.processor.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; special tokens vanish, surrounding white space is cut off."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


class _Chance:
    """Makes the likeliest word one drawn at random, by noise of the Gumbel distribution on the log-likelihoods.

    The noise depends on the picture, the sample's number and the word's place: the same picture gets the same
    description whatever is described beside it.

    Args:
        images: the pictures, each of which has ``samples`` rows in turn.
        samples: of each picture.
        temperature: of the softmax that words are drawn from.
    """

    def __init__(self, images: list[NDArray[np.uint8]], samples: int, temperature: float) -> None:
        self._seeds = [zlib.crc32(image.tobytes()) for image in images]
        self._samples, self._temperature = samples, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        shape = (self._samples, scores.shape[1])
        generators = [torch.Generator().manual_seed((seed << 16) + input_ids.shape[1]) for seed in self._seeds]
        uniform = torch.cat([torch.rand(shape, generator=generator) for generator in generators])
        noise = -torch.log(-torch.log(uniform.clamp_min(1e-20)))
        return scores / self._temperature + noise.to(scores.device)


def _until_special(ids: list[int], special: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in special:
            return ids[:position]
    return ids
