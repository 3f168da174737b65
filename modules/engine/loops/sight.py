"""Pictures in a prompt: how many tokens each takes, where its tokens stand, and what the vision tower makes of it.

A picture's place in a prompt is a run of one token id (`image_token_id`). For the KV cache each of them counts as
another token, named by the picture's bytes: the same text with another picture is another prompt. Whatever a user
writes is no picture: only pieces with a picture's size become that token (loaded.py).
"""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from modules.errors import BadValue, GenerationFailed
from modules.messages import Picture

Size = tuple[int, int]
_SIZES_KEPT = 256


@dataclass(frozen=True, slots=True)
class Expansion:
    """What the processor writes for a picture of one size: its text, how many image tokens that has, its grid if any.

    `grid` (3,) are the patches by time, height and width, for families whose positions follow them (mrope).
    """

    text: str
    tokens: int
    grid: torch.Tensor | None


@dataclass(slots=True)
class Seen:
    """The pictures of one request.

    `keys` are the prompt's tokens as a KV cache compares them. `owner` says of every place of a picture which picture
    it is and which of its tokens, `last` where each picture ends. `positions` (3, prompt) are there where the family
    has such; what follows is `delta` away from its place. `features` are vectors in use.
    """

    pictures: tuple[Picture, ...]
    keys: list[int]
    owner: dict[int, tuple[int, int]] = field(default_factory=dict)
    last: list[int] = field(default_factory=list)
    positions: torch.Tensor | None = None
    delta: int = 0
    features: dict[int, torch.Tensor] = field(default_factory=dict)


class Eyes:
    """A model's vision tower with its processor. Used by the thread that owns the model, but for `expansion`."""

    def __init__(self, model: Any, processor: Any, device: torch.device, *, most_side: int) -> None:
        """Pictures with a side longer than `most_side` pixels are scaled down first: memory is planned for so much."""
        self.image_token_id: int = model.config.image_token_id
        self.image_token: str = processor.image_token
        self._processor = processor
        self._tower = model.model
        self._embed = model.get_input_embeddings()
        self._device = device
        self._kwargs = processor._merge_kwargs(return_tensors="pt")["images_kwargs"]
        self._accepted = inspect.signature(_unwrapped(self._tower.get_image_features)).parameters.keys()
        self._most_side = most_side
        self._by_size: dict[Size, Expansion] = {}

    def expansion(self, size: Size) -> Expansion:
        """What stands in the prompt for a picture of `size`; found by processing a blank one, and remembered."""
        if size not in self._by_size:
            if len(self._by_size) >= _SIZES_KEPT:
                self._by_size.clear()
            processed, (text,) = self._processed(Image.new("RGB", size, (90, 120, 150)))
            grid = processed.get("image_grid_thw")
            self._by_size[size] = Expansion(text, text.count(self.image_token), None if grid is None else grid[0])
        return self._by_size[size]

    def check(self, prompt_ids: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Raise BadValue where a prompt has pictures and not exactly their tokens."""
        if pictures:
            wanted = sum(self.expansion((picture.width, picture.height)).tokens for picture in pictures)
            there = prompt_ids.count(self.image_token_id)
            if wanted != there:
                raise BadValue(
                    f"The prompt has room for {there:,} tokens of pictures; its {len(pictures)} take {wanted:,}.",
                    remedy="Send the pictures with the messages that they belong to.",
                    param="messages",
                )

    def look(self, prompt_ids: Sequence[int], pictures: Sequence[Picture]) -> Seen:
        """Where the pictures are in a prompt; none of them is looked at yet."""
        seen = Seen(tuple(pictures), list(prompt_ids))
        if not pictures:
            return seen
        places = [place for place, token in enumerate(prompt_ids) if token == self.image_token_id]
        expansions = [self.expansion((picture.width, picture.height)) for picture in pictures]
        first = 0
        for number, (picture, expansion) in enumerate(zip(pictures, expansions, strict=True)):
            name = int.from_bytes(hashlib.blake2b(picture.data, digest_size=12).digest())
            own = places[first : first + expansion.tokens]
            for index, place in enumerate(own):
                seen.owner[place] = (number, index)
                seen.keys[place] = -1 - ((name << 24) + index)
            seen.last.append(own[-1])
            first += expansion.tokens
        grids = [expansion.grid for expansion in expansions if expansion.grid is not None]
        if grids and hasattr(self._tower, "get_rope_index"):
            ids = torch.tensor([list(prompt_ids)])
            positions, delta = self._tower.get_rope_index(
                ids, mm_token_type_ids=(ids == self.image_token_id).int(), image_grid_thw=torch.stack(grids)
            )
            seen.positions, seen.delta = positions[:, 0], int(delta)
        return seen

    def embedded(self, seen: Seen, keys: Sequence[int], start: int) -> torch.Tensor:
        """The vectors (1, tokens, hidden) of the tokens `keys`, which stand at `start`: words', and pictures'."""
        ids = torch.tensor([[key if key >= 0 else self.image_token_id for key in keys]], device=self._device)
        vectors: torch.Tensor = self._embed(ids).clone()
        for place in range(start, start + len(keys)):
            if place in seen.owner:
                number, index = seen.owner[place]
                vectors[0, place - start] = self._features(seen, number)[index].to(vectors)
        for number, last in enumerate(seen.last):
            if last < start + len(keys):
                seen.features.pop(number, None)
        return vectors

    def _features(self, seen: Seen, number: int) -> torch.Tensor:
        """The vectors (image tokens, hidden) of one picture, made when its first token is read."""
        if number not in seen.features:
            picture = seen.pictures[number]
            with Image.open(io.BytesIO(picture.data)) as image:
                processed, _ = self._processed(image.convert("RGB"))
            inputs = {name: value.to(self._device) for name, value in processed.items() if name in self._accepted}
            output = self._tower.get_image_features(**inputs, return_dict=True)
            vectors = torch.cat(list(output.pooler_output), dim=0)
            wanted = self.expansion((picture.width, picture.height)).tokens
            if vectors.shape[0] != wanted:
                raise GenerationFailed(
                    f"The model made {vectors.shape[0]:,} vectors of a picture that has {wanted:,} tokens.",
                    remedy="Send another picture; the model's processor files may not belong to it.",
                )
            seen.features[number] = vectors
        return seen.features[number]

    def _processed(self, image: Image.Image) -> tuple[Any, list[str]]:
        if max(image.size) > self._most_side:
            image = image.copy()
            image.thumbnail((self._most_side, self._most_side))
        processed, texts = self._processor._process_images([image], **self._kwargs)
        return processed, texts


def _unwrapped(method: Any) -> Any:
    """The method as its family wrote it, below the decorators of the library."""
    return inspect.unwrap(method)
