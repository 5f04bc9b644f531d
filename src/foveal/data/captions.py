"""Scenes of one named thing with a caption: what towers for pictures and texts learn from, and are graded on."""

from collections.abc import Sequence

from PIL import Image

from foveal.core.errors import InputError, neighbours
from foveal.data.mixture import permuted
from foveal.data.sample import Sample
from foveal.data.scenes import SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet

CAPTIONS = ("a photo of a {}.", "a picture of a {}.", "a {}.")
"""What is said of a picture in training; the first is what `foveal match` asks with."""

BACKGROUNDS = 100
"""Of each split. Each takes 0.2 MB in every process that makes scenes."""

ONE = SceneSettings(shape_share=0.0, side=(0.85, 0.6), turn_deg=10.0, backgrounds=BACKGROUNDS)
"""Look of the scenes: the thing, gently turned, stretched and tinted, takes 85 to 95 % of the side, anywhere on any
background."""


class CaptionedScenes:
    """Sample number n of a run, without end (`foveal.train.stage.Numbered`): a picture of one thing, and its name.

    The samples `r * N` to `r * N + N - 1`, with N names, show every name once. So in a step of N samples or fewer that
    divide N, no caption of one picture is true of another, which losses over pairs would take for wrong.

    Args:
        sprites: pictures of things.
        split: "train", or "test" for pictures and backgrounds that training never shows.
        names: of the things shown; None: all.
        captions: sentences with `{}` for the name; one after the other is taken whenever all names were shown.
        settings: look of the scenes.
        cells: their side, in cells of `foveal.data.scenes.CELL_PX`.
        seed: another seed gives other scenes of the same things.
    """

    def __init__(
        self,
        sprites: SpriteSet,
        split: str = "train",
        *,
        names: Sequence[str] | None = None,
        captions: Sequence[str] = CAPTIONS,
        settings: SceneSettings = ONE,
        cells: int = 3,
        seed: int = 0,
    ) -> None:
        self.names = sprites.names if names is None else tuple(names)
        if not self.names:
            raise InputError("captioned scenes of no name; give at least one.")
        for name in self.names:
            if name not in sprites.names:
                raise InputError(f"no picture of {name!r}; {neighbours(name, sprites.names)}")
        if not captions:
            raise InputError("captioned scenes with no caption; give at least one, with {} for the name.")
        for caption in captions:
            if caption.count("{}") != 1:
                raise InputError(f"caption {caption!r} has {caption.count('{}')} places for the name; write {{}} once.")
        self.captions, self.cells, self.seed, self.split = tuple(captions), cells, seed, split
        self._maker = SceneMaker(sprites, split, settings, seed)

    def name(self, n: int) -> str:
        """What scene number `n` shows."""
        turn, place = divmod(n, len(self.names))
        return self.names[permuted(place, len(self.names), (self.seed, self.split, turn))]

    def picture(self, n: int) -> Image.Image:
        """Scene number `n`."""
        return Image.fromarray(self._maker.make(n, grid=(self.cells, self.cells), name=self.name(n)).image)

    def at(self, n: int) -> tuple[Sample, int]:
        """Sample number n, and how often all names were shown before it."""
        turn = n // len(self.names)
        said = self.captions[turn % len(self.captions)].replace("{}", self.name(n))
        messages = (
            {"role": "user", "content": [{"type": "image", "image": self.picture(n)}]},
            {"role": "assistant", "content": [{"type": "text", "text": said}]},
        )
        return Sample(id=str(n), messages=messages, set=f"scenes-{self.split}"), turn
