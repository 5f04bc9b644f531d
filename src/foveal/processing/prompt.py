"""Raw prompts, for base models and for whoever knows the format: placeholders in the text, media beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveal.core.errors import InputError
from foveal.processing.messages import ImagePart, VideoPart, parse_part
from foveal.processing.segments import MediumSegment, Segment, SpecialSegment


def place_media(
    segments: Sequence[Segment], media: Sequence[Any], pads: tuple[str, str | None]
) -> tuple[list[Segment], list[ImagePart | VideoPart]]:
    """Puts `media` in the place of the pads of images and videos, in order.

    A medium is a mapping or part as in messages, or its bare source: the placeholder says what it is.

    Raises:
        InputError: there are more or fewer media than placeholders, or one is of the other kind.
    """
    image_pad, video_pad = pads
    found = [s.name for s in segments if isinstance(s, SpecialSegment) and s.name in pads]
    if len(found) != len(media):
        moving = video_pad in found
        kinds, pad = ("media", f"{image_pad} or {video_pad}") if moving else ("images", image_pad)
        advice = f"add {pad} or drop one of the {kinds}" if len(media) > len(found) else f"add {kinds} or drop {pad}"
        raise InputError(f"{len(media)} {kinds} but {len(found)} placeholders in the prompt; {advice}.")
    placed: list[Segment] = []
    parts: list[ImagePart | VideoPart] = []
    for segment in segments:
        if isinstance(segment, SpecialSegment) and segment.name in pads:
            number = len(parts)
            parts.append(_part(media[number], number, still=segment.name == image_pad))
            placed.append(MediumSegment(medium=number, pad=segment.name))
        else:
            placed.append(segment)
    return placed, parts


def _part(value: Any, index: int, *, still: bool) -> ImagePart | VideoPart:
    wanted = "an image" if still else "a video"
    if isinstance(value, Mapping | ImagePart | VideoPart):
        part = parse_part(value, f"media[{index}]")
        if not isinstance(part, ImagePart if still else VideoPart):
            kind = {ImagePart: "an image", VideoPart: "a video"}.get(type(part), "no medium")
            raise InputError(f"media[{index}] is {kind}, but its placeholder in the prompt is that of {wanted}.")
        return part
    if still:
        return ImagePart(source=value)
    return VideoPart(source=tuple(value) if isinstance(value, list | np.ndarray) else value)
