"""Qwen-VL's published prompts, in which a picture is named by a path: read, written and compared with ours.

Published ids hold the bytes of a path in the first of the 256 places of a picture:

    <img> 97 46 112 110 103 <imgpad> <imgpad> ... </img>        "a.png"; the ids are the byte values themselves
    <img> <imgpad> <imgpad> <imgpad> ...          </img>        here, with the pixels beside the ids

Nothing in this module opens a file. All of it honours tags, so it is for texts that a program or a data set
wrote, never for what a user types: that goes into messages.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import InputError
from foveal.processing.draw import draw
from foveal.processing.messages import BoxPart, ImagePart, Part, TextPart
from foveal.processing.picture_chat import SPECIALS
from foveal.processing.segments import SpecialSegment, TextSegment
from foveal.processing.tokens import TokenIds, Tokenizer

SPAN = 256
"""Places of a picture between its tags."""

_CLOSING = {"<img>": "</img>", "<ref>": "</ref>", "<box>": "</box>", "<quad>": "</quad>"}
_ORDINARY = {*_CLOSING, *_CLOSING.values(), "<imgpad>", "<|endoftext|>"}
_SPECIAL = re.compile("|".join(map(re.escape, SPECIALS)))
_OPENING = re.compile("|".join(_CLOSING))
_NUMBER = re.compile(r"Picture \d{1,9}: ?\Z")


def from_list_format(elements: Iterable[Mapping[str, Any]]) -> str:
    """A prompt from elements `{"image": path}`, `{"text": words}` and `{"box": [corners, ...], "ref": label}`.

    Corners are (x1, y1, x2, y2) in 0..1000, cut to whole numbers; of several keys image stands above text,
    and text above box. A quad is read by `to_list_format` but not written, as published.

    Raises:
        InputError: an element has none of the three, a box not four numbers, a text a control token, or a name or
            label any special token: it would open what the element does not.
    """
    written, pictures = [], 0
    for element in elements:
        if "image" in element:
            pictures += 1
            written.append(f"Picture {pictures}: <img>{_free(element['image'], 'image')}</img>\n")
        elif "text" in element:
            written.append(_free(element["text"], "text", _ORDINARY))
        elif "box" in element:
            if "ref" in element:
                written.append(f"<ref>{_free(element['ref'], 'ref')}</ref>")
            for box in element["box"]:
                if len(box) != 4:
                    raise InputError(f"box {box!r} has {len(box)} numbers; expected x1, y1, x2, y2.")
                x1, y1, x2, y2 = map(int, box)
                written.append(f"<box>({x1},{y1}),({x2},{y2})</box>")
        else:
            raise InputError(f"element {dict(element)!r} has no 'image', 'text' or 'box'; add one of them.")
    return "".join(written)


def _free(value: Any, key: str, allowed: Collection[str] = ()) -> str:
    """`value` as text; `InputError` if a special token stands in it that is not allowed there."""
    text = unicodedata.normalize("NFC", str(value))
    for found in _SPECIAL.finditer(text):
        if found[0] not in allowed:
            raise InputError(f"{key!r} holds the special token {found[0]!r}, which is no part of it; remove it.")
    return str(value)


def to_list_format(text: str) -> list[dict[str, str]]:
    """A text as elements with one key each: "text", "image", "ref", "box" or "quad"; values are the words inside.

    Raises:
        InputError: a tag is not closed, or a special token stands in the text that no content may hold.
    """
    text = unicodedata.normalize("NFC", text)
    for found in _SPECIAL.finditer(text):
        if found[0] not in _ORDINARY:
            raise InputError(f"{found[0]!r} at character {found.start()} is a control token, not content; remove it.")
    elements = []
    for tag, content in _cut(text):
        if tag or content:
            elements.append({tag.strip("<>").replace("img", "image") if tag else "text": content})
    return elements


def _cut(text: str) -> Iterator[tuple[str, str]]:
    """(opening tag, content) of tagged pieces, ("", text) between them; inside a tag others are only text."""
    at = 0
    while start := _OPENING.search(text, at):
        yield "", text[at : start.start()]
        end = text.find(_CLOSING[start[0]], start.end())
        if end < 0:
            raise InputError(f"{start[0]} at character {start.start()} is not closed; add {_CLOSING[start[0]]}.")
        yield start[0], text[start.end() : end]
        at = end + len(_CLOSING[start[0]])
    yield "", text[at:]


def to_parts(text: str, images: Mapping[str, Any], *, first: int = 0) -> list[Part]:
    """A published text as parts of a message, for data sets in the published form.

    `Picture 1: ` before a picture and the line break after it are left out, because the chat format writes them.
    Boxes are those of the last picture so far. A label without a box becomes plain text.

    Args:
        text: what one speaker says.
        images: what to open for each name; a name that is not there is an error, so nothing else is opened.
        first: pictures in the messages before this one.

    Raises:
        InputError: as `to_list_format`, or an unknown name, or numbers that are no box.
    """
    parts: list[Part] = []
    label: str | None = None
    pictures, follows = first, False
    elements = to_list_format(text)
    for number, element in enumerate(elements):
        ((key, value),) = element.items()
        if label is not None and key not in ("box", "quad"):
            parts, label = _told(parts, label), None
        if key == "image":
            if value not in images:
                raise InputError(f"the text names the picture {value!r}, which is not among the {len(images)} given.")
            parts.append(ImagePart(source=images[value]))
            pictures += 1
        elif key == "text":
            words = value.removeprefix("\n") if follows else value
            if any("image" in e for e in elements[number + 1 : number + 2]):
                words = _NUMBER.sub("", words)
            parts += [TextPart(text=words)] if words else []
        elif key == "ref":
            label = value
        else:
            parts.append(BoxPart(box=_box(label or "", value, max(0, pictures - 1))))
            label = label if any(e.keys() & {"box", "quad"} for e in elements[number + 1 : number + 2]) else None
        follows = key == "image"
    return parts if label is None else _told(parts, label)


def _told(parts: list[Part], label: str) -> list[Part]:
    return [*parts, TextPart(text=label)]


def _box(label: str, numbers: str, image: int) -> Box:
    values = _numbers(numbers)
    if len(values) not in (4, 8):
        raise InputError(f"{numbers!r} is no box: it has {len(values)} numbers, expected 4, or 8 for a quad.")
    points = tuple(map(float, values))
    xs, ys = points[::2], points[1::2]
    return Box(
        label=label,
        corners=(min(xs), min(ys), max(xs), max(ys)),
        space=Space.RELATIVE_1000,
        image=image,
        points=points if len(points) == 8 else (),
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(n) for n in text.replace("(", "").replace(")", "").split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no row of whole numbers such as (12,34),(56,78).") from None


def boxes_of(answer: str) -> list[dict[str, Any]]:
    """The boxes of an answer, as `{"box": (x1, y1, x2, y2)}` in 0..1000, with "ref" where a label stands before.

    Raises:
        InputError: as `to_list_format`, or something between box tags is no four whole numbers.
    """
    found: list[dict[str, Any]] = []
    before: Mapping[str, str] = {}
    for element in to_list_format(answer):
        if "box" in element:
            corners = tuple(_numbers(element["box"]))
            if len(corners) != 4:
                raise InputError(f"{element['box']!r} is no box: it has {len(corners)} numbers, expected 4.")
            found.append({"box": corners, **({"ref": before["ref"].strip()} if "ref" in before else {})})
        before = element
    return found


def pixel_corners(box: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners in 0..1000 as whole pixels of a picture of `size` (width, height), rounded down, as published."""
    x1, y1, x2, y2 = (int(value / 1000 * size[i % 2]) for i, value in enumerate(box))
    return x1, y1, x2, y2


def latest_picture(texts: Iterable[str]) -> str | None:
    """The name of the last picture in a conversation's texts, in order; None without one."""
    names = [e["image"] for text in texts for e in to_list_format(text) if "image" in e]
    return names[-1] if names else None


def draw_boxes(picture: Image.Image, answer: str) -> Image.Image | None:
    """A copy of the picture with the boxes of an answer and their labels; None if it has none.

    Places are those of the published drawing (see `pixel_corners`), corners of any order are put in order; lines
    and letters are those of `foveal.processing.draw`.
    """
    view = ImageView(original=picture.size, processed=picture.size)
    boxes = []
    for found in boxes_of(answer):
        x1, y1, x2, y2 = pixel_corners(found["box"], picture.size)
        boxes.append(Box.mended(found.get("ref", ""), (x1, y1, x2, y2), Space.ORIGINAL_PX, view))
    return draw(picture, boxes, view=view) if boxes else None


class PicturePrompts:
    """The published prompts of one vocabulary, as ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start, self.end, self.pad = (tokenizer.special(n) for n in ("<img>", "</img>", "<imgpad>"))

    def encode(self, text: str) -> list[int]:
        """Published ids: special tokens are honoured, paths are bytes.

        Raises:
            InputError: a picture's tag is not closed, or its path has more than 256 bytes or a special token.
        """
        ids: list[int] = []
        path: list[int] | None = None
        for segment in self.tokenizer.split(unicodedata.normalize("NFC", text)):
            if path is None and isinstance(segment, TextSegment):
                ids += self.tokenizer.encode_text(segment.text)
            elif path is None and isinstance(segment, SpecialSegment):
                path = [] if segment.name == "<img>" else None
                ids.append(self.tokenizer.special(segment.name))
            elif path is not None and isinstance(segment, TextSegment):
                path += segment.text.encode()
            elif path is not None and isinstance(segment, SpecialSegment):
                if segment.name != "</img>":
                    raise InputError(f"the path after <img> holds {segment.name!r}; close it with </img> before.")
                ids += [*self._slots(path), self.end]
                path = None
        if path is not None:
            raise InputError("<img> is not closed; add </img>.")
        return ids

    def _slots(self, path: Sequence[int]) -> list[int]:
        if len(path) > SPAN:
            raise InputError(f"a path between <img> and </img> has {len(path)} bytes; at most {SPAN} fit.")
        return [*path, *[self.pad] * (SPAN - len(path))]

    def decode(self, ids: TokenIds, *, skip_special: bool = False, keep_tags: bool = False) -> str:
        """Text of published ids, with the paths of pictures.

        Args:
            ids: as `encode` gives them.
            skip_special: leave special tokens out.
            keep_tags: all but the tags of labels, boxes and quads.

        Raises:
            InputError: a picture is not closed, or all its 256 places hold bytes, so that its path has no end.
        """
        kept = {self.tokenizer.special(n) for pair in list(_CLOSING.items())[1:] for n in pair}
        hidden = self.tokenizer.special_ids - (kept if keep_tags else set()) if skip_special else frozenset()
        pieces = []
        for token, path in self._read(ids):
            if path is None:
                pieces.append(b"" if token in hidden else self.tokenizer.token_bytes(token))
            else:
                tags = (b"", b"") if skip_special else (b"<img>", b"</img>")
                pieces.append(tags[0] + path + tags[1])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def names(self, ids: TokenIds) -> list[str]:
        """The paths of all pictures in published ids; raises as `decode`."""
        return [path.decode("utf-8", errors="replace") for _, path in self._read(ids) if path is not None]

    def ours(self, ids: TokenIds) -> list[int]:
        """Published ids with pads for the bytes of paths, which is what `Processor.process` makes."""
        made: list[int] = []
        for token, path in self._read(ids):
            made += [token] if path is None else [self.start, *[self.pad] * SPAN, self.end]
        return made

    def published(self, ids: TokenIds, names: Sequence[str]) -> list[int]:
        """Ids of `Processor.process` with the bytes of `names`, one for each picture, as published.

        Raises:
            InputError: there are more or fewer names than pictures, or a name has more than 256 bytes.
        """
        ids = [int(i) for i in ids]
        pictures = ids.count(self.start)
        if pictures != len(names):
            raise InputError(f"{len(names)} names for {pictures} pictures; give one for each.")
        waiting = iter(names)
        made: list[int] = []
        for token, path in self._read(ids):
            if path is None:
                made.append(token)
            else:
                made += [self.start, *self._slots(next(waiting).encode()), self.end]
        return made

    def prompt(self, text: str) -> tuple[str, list[str]]:
        """A published prompt as `prompt=` of `Processor.process`, and the names of its pictures for `media=`."""
        names: list[str] = []

        def place(found: re.Match[str]) -> str:
            names.append(found[1])
            return "<img><imgpad></img>"

        self.encode(text)  # for its errors
        return re.sub(r"<img>(.*?)</img>", place, text, flags=re.DOTALL), names

    def _read(self, ids: TokenIds) -> Iterator[tuple[int, bytes | None]]:
        """(id, None) of a token, or (id of `<img>`, path) of a picture with all its places."""
        ids = [int(i) for i in ids]
        at = 0
        while at < len(ids):
            if ids[at] != self.start:
                yield ids[at], None
                at += 1
                continue
            try:
                stop = ids.index(self.end, at)
                path = ids[at + 1 : stop]
                path = path[: path.index(self.pad)]
            except ValueError:
                raise InputError(f"the picture at id {at} has no </img>, or no <imgpad> that ends its path.") from None
            if not all(0 <= value < 256 for value in path):
                raise InputError(f"the picture at id {at} holds ids that are no bytes: {path[:8]}.")
            yield self.start, bytes(path)
            at = stop + 1
