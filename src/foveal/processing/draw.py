"""Boxes drawn on a picture, with labels that can be read on any background."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from foveal.core.box import Box, ImageView, Space

# Far apart in hue and usable on light and dark pictures.
_COLOURS = ((230, 25, 75), (0, 130, 200), (60, 160, 60), (245, 130, 48), (145, 30, 180), (0, 128, 128),
            (240, 50, 230), (128, 90, 20), (255, 225, 25), (70, 240, 240))  # fmt: skip
_FONTS = (
    # Chinese, Japanese and Korean with Latin
    ("wqy-microhei", "wqy-zenhei", "notosanscjk", "notoserifcjk", "sourcehansans", "pingfang", "stheiti",
     "hiragino", "msyh", "simhei", "simsun", "droidsansfallback", "uming", "ukai"),
    # Latin with accents, Greek, Cyrillic
    ("dejavusans.", "notosans-regular", "liberationsans-regular", "arial.", "helvetica", "segoeui."),
)  # fmt: skip
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
                 "/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
_SMALLEST_LETTER_PX = 9
_LONGEST_LABEL = 120  # letters; no picture has room for more
_NOWHERE = "\U0010fffe"  # a code point that is no character, so that no font has it

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom lie outside


def draw(picture: Image.Image, boxes: Iterable[Box], *, view: ImageView | None = None) -> Image.Image:
    """A copy of `picture` with `boxes` and their labels on it, in RGB.

    Lines and letters grow with the picture; equal labels get equal colours. A label stands on a filled
    ground above its box, else inside or below it, and always within the picture; one that is too long is
    set smaller, then cut with an ellipsis. A quadrilateral is drawn as such. Pillow's own font has ASCII only; for
    other letters (accents, Chinese) a font of the system is taken if it has more of them, and what is lacking still
    is written as escapes such as `\\u732b`.

    Args:
        picture: the user's image, upright, as `foveal.processing.media.open_image` returns it.
        boxes: in any space, all of this picture.
        view: the sizes of that image; needed for boxes in other spaces than pixels of the original.
            None: the picture was seen at its own size.
    """
    canvas = picture.copy() if picture.mode == "RGB" else picture.convert("RGB")
    view = view or ImageView(original=picture.size, processed=picture.size)
    short = min(canvas.size)
    line, letter_px = max(1, round(short / 180)), max(12, round(short / 26))
    pen = ImageDraw.Draw(canvas)
    placed = [(box, _pixels(box.to(Space.ORIGINAL_PX, view).corners, canvas.size)) for box in boxes]
    # Large boxes first and labels last, so that small boxes and words stay visible.
    for box, (left, top, right, bottom) in sorted(placed, key=lambda pair: _area(pair[1]), reverse=True):
        colour = colour_of(box.label)
        if points := box.to(Space.ORIGINAL_PX, view).points:
            edges = list(zip(points[::2], points[1::2], strict=True))
            pen.polygon(edges, outline=_contrast(colour), width=line + 2)
            pen.polygon(edges, outline=colour, width=line)
            continue
        # A thin edge of the opposite lightness keeps the line visible on its own colour.
        pen.rectangle((left - 1, top - 1, right, bottom), outline=_contrast(colour), width=line + 2)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)
    taken: list[Rectangle] = []
    for box, corners in placed:
        if words := " ".join(box.label[: 4 * _LONGEST_LABEL].split())[:_LONGEST_LABEL]:
            taken.append(_write(pen, canvas.size, corners, words, letter_px, colour_of(box.label), taken))
    return canvas


def colour_of(label: str) -> Colour:
    """The colour of a label: the same in every picture and every run."""
    return _COLOURS[sum(label.encode("utf-8", "replace")) % len(_COLOURS)]


def _pixels(corners: Sequence[int | float], size: tuple[int, int]) -> Rectangle:
    """Corners as whole pixels of the picture, at least one of them."""
    edges = []
    for near, far, end in zip(corners[:2], corners[2:], size, strict=True):
        begin = min(max(round(near), 0), end - 1)
        edges.append((begin, min(max(round(far), begin + 1), end)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _write(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: Rectangle,
    words: str,
    letter_px: int,
    colour: Colour,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Writes a label at a box and returns the ground it takes; not over another label while there is room."""
    words, font, (x0, y0, x1, y1) = _fitted(pen, words, letter_px, size[0])
    margin = max(1, letter_px // 8)
    width, height = min(x1 - x0 + 2 * margin, size[0]), min(y1 - y0 + 2 * margin, size[1])
    left, top, right, bottom = corners
    near, far = max(0, min(left, size[0] - width)), max(0, min(right - width, size[0] - width))
    roomy = bottom - top > 2 * height  # a small box would vanish under a label inside it
    heights = (top - height, top, bottom, bottom - height) if roomy else (top - height, bottom, top)
    grounds = [(x, y, x + width, y + height) for x in (near, far) for y in heights if 0 <= y <= size[1] - height] or [
        (near, 0, near + width, height)
    ]
    ground = next((g for g in grounds if not any(_overlap(g, t) for t in taken)), grounds[0])
    pen.rectangle((ground[0], ground[1], ground[2] - 1, ground[3] - 1), fill=colour)
    pen.text((ground[0] + margin - x0, ground[1] + margin - y0), words, font=font, fill=_contrast(colour))
    return ground


def _fitted(pen: ImageDraw.ImageDraw, words: str, letter_px: int, room_px: int) -> tuple[str, Font, Rectangle]:
    """The words, their font and their extent, set smaller or cut until they fit into `room_px`."""
    smallest_px = max(_SMALLEST_LETTER_PX, letter_px * 2 // 3)
    shown, font = _legible(words, letter_px)
    while True:
        left, top, right, bottom = pen.textbbox((0, 0), shown, font=font)
        smallest = letter_px <= smallest_px
        if right - left + letter_px // 2 <= room_px or (smallest and len(shown) <= 2):
            return shown, font, (int(left), int(top), int(right) + 1, int(bottom) + 1)
        if smallest:
            shown = shown.removesuffix("…")[:-1].rstrip() + "…"
        else:
            letter_px -= 1
            shown, font = _legible(words, letter_px)


def _legible(words: str, letter_px: int) -> tuple[str, Font]:
    """The words in letters that the returned font has; other letters as escapes."""
    font: Font = ImageFont.load_default(letter_px)
    lacking = _lacking(font, words)
    for path in _system_fonts() if lacking else ():
        other = ImageFont.truetype(path, letter_px)
        if len(_lacking(other, words)) < len(lacking):
            font, lacking = other, _lacking(other, words)
    return "".join(c.encode("ascii", "backslashreplace").decode() if c in lacking else c for c in words), font


def _lacking(font: Font, words: str) -> set[str]:
    """Characters that the font would show as its empty box."""
    foreign = {c for c in words if not c.isascii()}
    if not isinstance(font, ImageFont.FreeTypeFont):
        return foreign  # the bitmap font of a Pillow without FreeType
    box = bytes(font.getmask(_NOWHERE))
    return {c for c in foreign if bytes(font.getmask(c)) == box}


@cache
def _system_fonts() -> tuple[str, ...]:
    """At most one font of this machine for each group of `_FONTS`, by the usual file names."""
    files = [p for folder in _FONT_FOLDERS for p in sorted(Path(folder).expanduser().glob("**/*.[to]t[cf]"))]
    found = []
    for names in _FONTS:
        known = (str(p) for name in names for p in files if p.name.lower().startswith(name))
        found += [path for path in known if _readable(path)][:1]
    return tuple(found)


def _readable(path: str) -> bool:
    try:
        ImageFont.truetype(path, 12)
    except OSError:
        return False
    return True


def _area(box: Rectangle) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contrast(colour: Colour) -> Colour:
    """Black or white, whichever has the higher contrast with `colour` (WCAG 2 relative luminance)."""
    red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)
