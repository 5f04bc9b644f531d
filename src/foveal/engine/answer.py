"""What a question gives back: text, boxes in the user's pixels, and what it cost."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.core.box import Box, Point, Space
from foveal.core.errors import InputError
from foveal.core.media import MediaBudget
from foveal.core.packed import Medium
from foveal.engine.request import FinishReason, Sampling
from foveal.processing.draw import draw
from foveal.processing.media import open_image


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one answer. `visual_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    visual_tokens: int
    answer_tokens: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of a model.

    Attributes:
        text: for people: without grounding tags and coordinates.
        boxes: in pixels of the original images.
        points: likewise, for families that point.
        parts: words and boxes in order, for `message`.
        raw: the model's own words with every tag.
        ids: token ids, the closing one included.
        finish_reason: "stop" (the model ended or a stop string came) or "length".
        usage: tokens.
        media: what the model saw of each image and video: original and processed size, grid, times.
        sampling: the options in force, with the seed that was used.
    """

    text: str
    boxes: tuple[Box, ...]
    parts: tuple[str | Box, ...]
    raw: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    media: tuple[Medium, ...]
    sampling: Sampling
    sources: tuple[Any, ...] = field(default=(), repr=False)
    """The images and videos as the user gave them, in order."""
    left_out: int = 0
    """How many of `sources` the model was not shown because the conversation is longer than its family's window;
    `media` begins after them, and `Box.image` counts them."""
    points: tuple[Point, ...] = ()
    budget: MediaBudget = field(default=MediaBudget(), repr=False)

    @property
    def message(self) -> dict[str, Any]:
        """This answer as a turn of the conversation, for asking on."""
        return {"role": "assistant", "content": list(self.parts) or ""}

    def draw(self, path: str | Path | None = None, *, image: int | None = None) -> Image.Image:
        """The image with the answer's boxes and labels; also written to `path` when one is given.

        Args:
            path: where to write the picture; its ending chooses the format.
            image: which medium to draw on; by default that of the first box, or the only image.
        """
        pictures = [i for i, medium in enumerate(self.media, start=self.left_out) if medium.kind == "image"]
        if image is None:
            image = self.boxes[0].image if self.boxes else (pictures[0] if pictures else -1)
        if image not in pictures:
            raise InputError(f"image {image} cannot be drawn on; the answer is about images {pictures}.")
        picture = draw(
            open_image(self.sources[image], budget=self.budget),
            [box for box in self.boxes if box.image == image],
        )
        if path is not None:
            write_picture(picture, Path(path))
        return picture

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for programs."""
        return {
            "text": self.text,
            "raw": self.raw,
            "finish_reason": self.finish_reason,
            "boxes": [box_json(box, self.media[box.image - self.left_out]) for box in self.boxes],
            **(
                {"points": [point_json(p, self.media[p.image - self.left_out]) for p in self.points]}
                if self.points
                else {}
            ),
            "media": [
                {
                    "kind": m.kind,
                    "source": m.source,
                    "original_size": list(m.view.original),
                    "processed_size": list(m.view.processed),
                    "tokens": m.tokens,
                    **({"times_s": list(m.times_s)} if m.times_s else {}),
                }
                for m in self.media
            ],
            "usage": asdict(self.usage),
            "sampling": asdict(self.sampling),
        }


def box_json(box: Box, medium: Medium) -> dict[str, Any]:
    """A box in original pixels with the size that the model saw."""
    placed = box.to(Space.ORIGINAL_PX, medium.view)
    return {
        "label": placed.label,
        "box_px": [round(v, 2) for v in placed.corners],
        **({"points_px": [round(v, 2) for v in placed.points]} if placed.points else {}),
        "image": placed.image,
        "processed_size": list(medium.view.processed),
        "flags": list(placed.flags),
    }


def point_json(point: Point, medium: Medium) -> dict[str, Any]:
    """A point in original pixels with the size that the model saw."""
    placed = point.to(Space.ORIGINAL_PX, medium.view)
    return {
        "label": placed.label,
        "point_px": [round(v, 2) for v in placed.place],
        "image": placed.image,
        "processed_size": list(medium.view.processed),
        "flags": list(placed.flags),
    }


def picture_format(path: Path) -> str:
    """Pillow's name of the format that a file's ending stands for; `InputError` if there is none."""
    kinds = Image.registered_extensions()
    if path.suffix.lower() not in kinds:
        raise InputError(f"cannot write a picture to {path.name!r}: unknown ending; use .png, .jpg or .webp.")
    return kinds[path.suffix.lower()]


def write_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture whole or not at all."""
    kind = picture_format(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        picture.save(temporary, format=kind)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}.") from None
