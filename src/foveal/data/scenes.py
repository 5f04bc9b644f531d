"""The scene maker: transparent pictures pasted on backgrounds, with exact boxes from the alpha channel.

A scene is a function of its sprites, its split and its number: `SceneMaker(...).make(7)` is the same picture
on every machine, so a test set is a range of numbers. Train and test differ in their numbers and in who drew
the pictures (see `sprites`).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from foveal.core.errors import ConfigError
from foveal.core.shapes import UInt8
from foveal.data.backgrounds import background
from foveal.data.shapes import COLOURS, SHAPES, draw_shape
from foveal.data.sprites import SPLITS, SpriteSet, trim

Kind = Literal["single", "distinct", "count"]

CELL_PX = 28
"""Side of one visual token of nano: 14 px patches, merged 2 by 2."""

GRIDS = ((6, 6), (6, 5), (5, 6), (7, 5), (5, 7), (7, 4), (4, 7), (8, 4), (4, 8))
"""Sizes of scenes in cells (wide, high): what `smart_resize` makes of usual photographs within 168 x 168 px."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object of a scene: its name, its box (left, top, right, bottom) in pixels, its colour if it is a shape."""

    name: str
    box: tuple[float, float, float, float]
    colour: str = ""
    title: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture [height, width, 3] and the objects in it, the hindmost first.

    `owners` says for every pixel which object is seen there: its index + 1, or 0 for the background.
    """

    kind: Kind
    image: UInt8[np.ndarray, "H W 3"]
    owners: UInt8[np.ndarray, "H W"]
    objects: tuple[Placed, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes look.

    Attributes:
        kinds: share of scenes with one object, with several different ones, and with several equal ones.
        objects: fewest and most objects of a scene with different ones.
        equal: fewest and most equal objects of a counting scene.
        side: an object's longer side, smallest and largest, as a share of the root of the picture's area.
        turn_deg: largest turn either way.
        stretch: largest change of an object's aspect ratio, as a factor.
        tint: largest change of a colour channel, as a share.
        warp: how far objects are bent, as a share of half their size (standard deviation).
        erase: chance that a ninth of an object is cut out.
        wild: chance of strong changes of contrast; half of it that of pale colours.
        overlap: largest share of an object that another may cover.
        shape_share: chance that an object is a plain coloured shape.
        backgrounds: how many backgrounds are made and then cut, mirrored and tinted at random.
    """

    kinds: tuple[float, float, float] = (0.2, 0.55, 0.25)
    objects: tuple[int, int] = (2, 4)
    equal: tuple[int, int] = (1, 5)
    side: tuple[float, float] = (0.22, 0.55)
    turn_deg: float = 15.0
    stretch: float = 1.15
    tint: float = 0.15
    warp: float = 0.0
    erase: float = 0.0
    wild: float = 0.0
    overlap: float = 0.08
    shape_share: float = 0.08
    backgrounds: int = 400

    def __post_init__(self) -> None:
        if abs(sum(self.kinds) - 1) > 1e-6:
            raise ConfigError(f"kinds {self.kinds} must add up to 1.")
        if not 1 <= self.objects[0] <= self.objects[1] or not 1 <= self.equal[0] <= self.equal[1]:
            raise ConfigError(f"objects {self.objects} and equal {self.equal} must be rising counts from 1.")


_CHANNELS = np.arange(3)


class SceneMaker:
    """Makes scene number `index` of a split. Not thread-safe only in that it keeps backgrounds it has made."""

    def __init__(
        self, sprites: SpriteSet, split: str, settings: SceneSettings = SceneSettings(), seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
        self.sprites, self.split, self.settings, self.seed = sprites, split, settings, seed
        self._backgrounds: dict[int, np.ndarray] = {}
        self._premultiplied: dict[int, tuple[np.ndarray, Image.Image]] = {}

    def random(self, index: int) -> np.random.Generator:
        """The generator that scene `index` is drawn with; streams of the two splits never meet."""
        return np.random.default_rng([SPLITS.index(self.split), self.seed, index])

    def make(
        self, index: int, kind: Kind | None = None, grid: tuple[int, int] | None = None, *, name: str | None = None
    ) -> Scene:
        """Draws scene `index`, of `kind` and of `grid` cells (wide, high); both are drawn when not given.

        With `name` the scene shows one thing, and it is called that.
        """
        random = self.random(index)
        chosen = ("single", "distinct", "count")[int(random.choice(3, p=self.settings.kinds))]
        shape = GRIDS[int(random.integers(len(GRIDS)))] if random.random() < 0.6 else GRIDS[0]
        kind, (columns, rows) = kind or chosen, grid or shape  # type: ignore[assignment]
        canvas = self._background(random, columns * CELL_PX, rows * CELL_PX)
        owners = np.zeros(canvas.shape[:2], np.uint8)
        objects: list[Placed] = []
        if name is not None:
            kind, things = "single", [self._thing(random, name)]
        else:
            things = self._things(random, kind)  # type: ignore[arg-type]
        for called, colour, rgba, title in things:
            tint = None if colour else self._tint(random)
            box = self._paste(random, canvas, owners, rgba, tint, objects, len(things))
            if box is not None:
                objects.append(Placed(name=called, box=box, colour=colour, title=title))
        return Scene(kind=kind, image=canvas, owners=owners, objects=tuple(objects))  # type: ignore[arg-type]

    def _things(self, random: np.random.Generator, kind: Kind) -> list[tuple[str, str, np.ndarray, str]]:
        """Name, colour, pixels and origin of everything to place, in order of placing."""
        low, high = {"single": (1, 1), "distinct": self.settings.objects, "count": self.settings.equal}[kind]
        count = int(random.integers(low, high + 1))
        if kind == "count":
            name = self._name(random)
            return [self._thing(random, name) for _ in range(count)]
        names: list[str] = []
        while len(names) < count:
            name = self._name(random)
            if name not in names:
                names.append(name)
        return [self._thing(random, name) for name in names]

    def _name(self, random: np.random.Generator) -> str:
        if random.random() < self.settings.shape_share:
            return SHAPES[int(random.integers(len(SHAPES)))]
        return self.sprites.names[int(random.integers(len(self.sprites.names)))]

    def _thing(self, random: np.random.Generator, name: str) -> tuple[str, str, np.ndarray, str]:
        if name in SHAPES:
            colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
            return name, colour, draw_shape(random, name, colour).rgba, "drawn"
        pictures = self.sprites.pictures(name, self.split)
        by_artist: dict[str, list] = {}  # type: ignore[type-arg]
        for picture in pictures:
            by_artist.setdefault(picture.artist, []).append(picture)
        # First an artist, then one of their styles, so that an artist with three styles does not rule.
        artist = sorted(by_artist)[int(random.integers(len(by_artist)))]
        sprite = by_artist[artist][int(random.integers(len(by_artist[artist])))]
        return name, "", sprite.rgba, f"{sprite.source}/{sprite.title}"

    def _background(self, random: np.random.Generator, width: int, height: int) -> np.ndarray:
        number = int(random.integers(self.settings.backgrounds))
        if number not in self._backgrounds:
            made = np.random.default_rng([SPLITS.index(self.split), self.seed, number, 1])
            self._backgrounds[number] = background(made, 256)
        whole = self._backgrounds[number]
        left, top = int(random.integers(256 - width + 1)), int(random.integers(256 - height + 1))
        cut = whole[top : top + height, left : left + width, random.permutation(3)]
        if random.random() < 0.5:
            cut = cut[:, ::-1]
        gain = random.uniform(0.6, 1.2)
        return np.clip(cut.astype(np.float32) * gain, 0, 255).astype(np.uint8)

    def _turned(self, random: np.random.Generator, rgba: np.ndarray, longest_px: float) -> np.ndarray:
        """The picture mirrored, stretched, sized, turned and bent at random, cut to what is visible.

        Colours come multiplied with their opacity, as resizing needs them.
        """
        settings = self.settings
        stretch = settings.stretch ** random.uniform(-0.5, 0.5)
        height, width = rgba.shape[0] * stretch, rgba.shape[1] / stretch
        scale = longest_px / max(height, width)
        size = max(4, round(width * scale)), max(4, round(height * scale))
        mirror, angle = random.random() < 0.5, random.uniform(-settings.turn_deg, settings.turn_deg)
        source = self._source(rgba)
        if settings.warp:
            picture = _bent(random, source, size, mirror, angle, settings.warp)
        else:
            picture = source.resize(size, Image.Resampling.BILINEAR)
            if mirror:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if abs(angle) > 2:
                picture = picture.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        pixels = np.array(picture)
        if random.random() < settings.erase:
            h, w = pixels.shape[0] // 3, pixels.shape[1] // 3
            y, x = int(random.integers(pixels.shape[0] - h + 1)), int(random.integers(pixels.shape[1] - w + 1))
            pixels[y : y + h, x : x + w] = 0
        return trim(pixels)

    def _coloured(self, random: np.random.Generator, piece: np.ndarray, tint: np.ndarray) -> np.ndarray:
        """The colours of a piece, tinted and now and then paled."""
        colour = tint[_CHANNELS, piece[..., :3]]
        if random.random() < self.settings.wild / 2:
            grey = colour.mean(-1, keepdims=True)
            colour = (grey + (colour - grey) * random.uniform(0.0, 0.7)).astype(np.uint8)
        return colour

    def _source(self, rgba: np.ndarray) -> Image.Image:
        """The picture with colours multiplied by opacity, kept for the next time."""
        key = id(rgba)
        if key not in self._premultiplied or self._premultiplied[key][0] is not rgba:
            if len(self._premultiplied) > 4096:
                self._premultiplied.clear()
            self._premultiplied[key] = rgba, Image.fromarray(rgba).convert("RGBa")
        return self._premultiplied[key][1]

    def _tint(self, random: np.random.Generator) -> np.ndarray:
        """A new value for every value 0..255 of the three channels and (unchanged) of opacity [4, 256]."""
        gains = 1 + random.uniform(-self.settings.tint, self.settings.tint, 4)
        values = np.linspace(0, 1, 256)
        if random.random() < self.settings.wild:
            values = values ** random.uniform(0.6, 1.6)
            if random.random() < 0.3:
                levels = int(random.integers(3, 7))
                values = np.round(values * levels) / levels
        table = 255 * values[None] * (gains[:3] * gains[3])[:, None]
        return np.clip(table, 0, 255).astype(np.uint8)

    def _paste(
        self,
        random: np.random.Generator,
        canvas: np.ndarray,
        owners: np.ndarray,
        rgba: np.ndarray,
        tint: np.ndarray | None,
        placed: list[Placed],
        count: int,
    ) -> tuple[float, float, float, float] | None:
        """Pastes one picture where it covers little of the others; None when there is no room."""
        height, width = canvas.shape[:2]
        low, high = self.settings.side
        high = {1: min(0.95, high * 1.7), 2: high * 1.15}.get(count, high * (1 - 0.1 * (count - 3)))
        unit = (height * width) ** 0.5
        piece = rgba
        for attempt in range(30):
            if attempt % 5 == 0:
                side = unit * (low + (high - low) * random.random() * 0.93**attempt)
                piece = self._turned(random, rgba, min(side, width - 2.0, height - 2.0))
            h, w = piece.shape[:2]
            if h > height or w > width:
                continue
            x, y = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            box = (float(x), float(y), float(x + w), float(y + h))
            if all(_covered(box, other.box) <= self.settings.overlap for other in placed):
                clear = 255 - piece[..., 3:].astype(np.uint16)
                colour = piece[..., :3] if tint is None else self._coloured(random, piece, tint)
                area = canvas[y : y + h, x : x + w]
                area[:] = np.minimum(colour + (area * clear + 127) // 255, 255)
                owners[y : y + h, x : x + w][piece[..., 3] > 127] = len(placed) + 1
                return box
        return None


def _bent(
    random: np.random.Generator, source: Image.Image, size: tuple[int, int], mirror: bool, angle: float, warp: float
) -> Image.Image:
    """Scales, mirrors, turns and bends a picture in one pass: a 3 x 3 net of points, each moved at random."""
    canvas = round(size[0] * 1.3), round(size[1] * 1.3)
    line = np.array([-1.3, 0.0, 1.3])
    net = np.stack(np.meshgrid(line, line), -1)  # (x, y) of the net's points on the canvas, 1 = the picture's edge
    net = net * size
    turn = np.deg2rad(angle)
    net = net @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    net = net / size + random.normal(0, warp, (3, 3, 2))
    if mirror:
        net[..., 0] *= -1
    net = (net + 1) / 2 * source.size
    xs, ys = (0, canvas[0] // 2, canvas[0]), (0, canvas[1] // 2, canvas[1])
    data = [
        (
            (xs[j], ys[i], xs[j + 1], ys[i + 1]),
            (*net[i, j], *net[i + 1, j], *net[i + 1, j + 1], *net[i, j + 1]),
        )
        for i in range(2)
        for j in range(2)
    ]
    return source.transform(canvas, Image.Transform.MESH, data, Image.Resampling.BILINEAR)


def _covered(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area that two boxes share, as a share of the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
