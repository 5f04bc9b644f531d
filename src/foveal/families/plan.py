"""What a request costs before any weight is read: tokens, memory, and the size of pictures that fits. No torch.

Tokens are exact. Memory counts what the model holds: weights, patches, cache, and the widest intermediate
results of the prefill; an allocator and torch itself come on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, InputError, neighbours
from foveal.core.packed import Medium
from foveal.families.base import Family
from foveal.families.describe import family_of
from foveal.language.config import BLOCK_TOKENS
from foveal.processing.intake import Knobs, VideoShape
from foveal.processing.processor import Processing

ITEM_BYTES = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2}
"""Bytes of one weight by the name of its type."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question as far as its cost goes.

    Attributes:
        images: (width, height) in pixels.
        videos: size, length and frame rate.
        text_tokens: what is written around the media, chat format included.
        answer_tokens: how long the answer may get.
        knobs: settings of the call, as for `Processor.process`.
    """

    images: Sequence[tuple[int, int]] = ()
    videos: Sequence[VideoShape] = ()
    text_tokens: int = 0
    answer_tokens: int = 512
    knobs: Knobs = field(default_factory=Knobs)

    def __post_init__(self) -> None:
        for name in ("text_tokens", "answer_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request costs.

    Attributes:
        media: the record of each medium; images first.
        prompt_tokens: text, visual tokens, and the markers around media.
        marker_tokens: those markers: two around each medium, where the family has them.
        answer_tokens: as asked for.
        context_tokens: what fits into the model.
        weights_bytes: all parameters in the chosen type.
        patches_bytes: pixel values of all media, in float32.
        cache_bytes: keys and values when the answer has ended.
        prefill_bytes: the widest intermediate results while the prompt is read.
        peak_bytes: the most that is held at once.
    """

    media: tuple[Medium, ...]
    prompt_tokens: int
    marker_tokens: int
    answer_tokens: int
    context_tokens: int
    weights_bytes: int
    patches_bytes: int
    cache_bytes: int
    prefill_bytes: int
    peak_bytes: int

    @property
    def visual_tokens(self) -> int:
        return sum(m.tokens for m in self.media)

    @property
    def fits_context(self) -> bool:
        return self.prompt_tokens + max(1, self.answer_tokens) <= self.context_tokens


class Planner:
    """Plans requests to the model of one checkpoint folder, of which only small JSON files are read.

    Args:
        folder: with config.json and preprocessor_config.json.
        dtype: type of the weights; None takes the one that config.json states.

    Attributes:
        family, config: what the folder holds.
        dtype: type of the weights.
        vision: how media become patches.
    """

    def __init__(self, folder: Path, *, dtype: str | None = None) -> None:
        published = read_json(folder / "config.json")
        self.family: Family = family_of(published, str(folder / "config.json"))
        self.config: Any = self.family.from_published(published)
        processing = self.family.processing(self.config)
        if not isinstance(processing, Processing):
            raise InputError(f"{folder} holds a {self.family.name} model, which answers no questions to be planned.")
        self.vision = processing.vision.read(folder)
        self._around: int = getattr(processing.chat, "markers", 2)
        self._arrange = processing.arrange
        self.dtype = stated_dtype(published) if dtype is None else dtype
        if self.dtype not in ITEM_BYTES:
            raise InputError(f"dtype {self.dtype!r} is unknown; {neighbours(str(self.dtype), ITEM_BYTES)}")

    def markers(self, medium: Medium) -> int:
        """Tokens around a medium, and between its parts."""
        own = getattr(self._arrange, "markers", None)
        return self._around if own is None or medium.kind == "image" else int(own(medium))

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight."""
        return ITEM_BYTES[self.dtype]

    def plan(self, request: Request) -> Plan:
        """What `request` costs. Raises `InputError` for a size or setting that the model cannot see."""
        knobs, item = request.knobs, self.item_bytes
        count = len(request.images) + len(request.videos)
        media = [self.vision.measure_image(w, h, knobs=knobs, count=count) for w, h in request.images]
        media += [self.vision.measure_video(v, knobs=knobs, count=count) for v in request.videos]
        visual = sum(m.tokens for m in media)
        patches = sum(m.grid[0] * m.grid[1] * m.grid[2] for m in media)
        markers = sum(self.markers(m) for m in media)
        prompt = request.text_tokens + visual + markers
        seen, said = self.config.vision, self.config.language
        weights = item * sum(self.family.parameters(self.config).values())
        pixels = 4 * (seen.patch_values * patches + getattr(self.vision, "extra_values", 0) * len(media))
        seen_width = said.width * (1 + getattr(said, "deep", 0))
        decoder = said.work_bytes(prompt, item) + item * visual * seen_width  # the tower's result is still there
        work = max(seen.work_bytes(patches, item), decoder)
        token = item * said.cache_values
        room = cache_room(prompt, request.answer_tokens)
        return Plan(
            media=tuple(media),
            prompt_tokens=prompt,
            marker_tokens=markers,
            answer_tokens=request.answer_tokens,
            context_tokens=self.family.context(self.config),
            weights_bytes=weights,
            patches_bytes=pixels,
            cache_bytes=token * room,
            prefill_bytes=work,
            peak_bytes=weights + pixels + max(token * cache_room(prompt, 2) + work, token * room),
        )

    def fit(self, request: Request, *, memory_bytes: int | None = None) -> tuple[int, Plan] | None:
        """The largest `max_pixels` with which `request` fits the context (and the memory), and its plan.

        None when not even the smallest size fits, or the family sees pictures at one size only. A request that fits
        as it is keeps its own limit.
        """

        def planned(max_px: int) -> Plan:
            return self.plan(replace(request, knobs=replace(request.knobs, max_pixels=max_px)))

        def fits(plan: Plan) -> bool:
            return plan.fits_context and (memory_bytes is None or plan.peak_bytes <= memory_bytes)

        limits = self.vision.pixel_range(images=bool(request.images), videos=bool(request.videos))
        if limits is None:
            return None
        low, high = request.knobs.min_pixels or limits[0], request.knobs.max_pixels or limits[1]
        high = max(low, high)
        if fits(planned(high)):
            return high, planned(high)
        if not fits(planned(low)):
            return None
        while high - low > 1:  # the cost never falls when max_pixels rises
            middle = (low + high) // 2
            if fits(planned(middle)):
                low = middle
            else:
                high = middle
        return low, planned(low)


def cache_room(prompt_tokens: int, answer_tokens: int) -> int:
    """Tokens for which the engine's cache has room once the answer has ended, whose last token is never read."""
    held = prompt_tokens + max(answer_tokens, 1) - 1
    return -(-held // BLOCK_TOKENS) * BLOCK_TOKENS


def stated_dtype(published: Mapping[str, Any]) -> str:
    """The type of the weights that a published config.json states, under its older or newer key."""
    for section in (published, published.get("text_config") or {}):
        for key in ("torch_dtype", "dtype"):
            if section.get(key) is not None:
                return str(section[key]).removeprefix("torch.")
    raise ConfigError("config.json does not state the type of the weights; say which with dtype.")
