"""Writes the fixed held-out scenes that the repository carries: 40 for the slow test, and some to look at.

Command:  python recipes/nano/6_examples.py
Result:   tests/data_files/scenes (pictures, questions and truths, lossy WebP) and examples/ (PNG with a truth file).
"""

import json
from pathlib import Path

from common import sprites
from PIL import Image

from foveal.data.scenes import SceneMaker
from foveal.eval.tasks.scenes import EXAM, SceneTask

SEED = 7
SCALE = 3
"""Examples are larger than what the model sees, as people's pictures are."""
SHOWN = {"scene": 0}
"""Example -> number of its scene; the kind is "distinct" and its background plain enough for a small file."""


def main() -> None:
    pictures = sprites()
    SceneTask.generated(pictures, scenes=40, seed=SEED).store(Path("tests/data_files/scenes"), lossless=False)
    maker = SceneMaker(pictures, "test", EXAM, seed=SEED + 1)
    folder = Path("examples")
    folder.mkdir(exist_ok=True)
    for name, number in SHOWN.items():
        scene = maker.make(number, kind="distinct")
        width, height = (side * SCALE for side in scene.size)
        large = Image.fromarray(scene.image).resize((width, height), Image.Resampling.BICUBIC)
        large.quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
        truth = {
            "size": (width, height),
            "objects": [{"name": o.name, "box": [v * SCALE for v in o.box], "picture": o.title} for o in scene.objects],
        }
        (folder / f"{name}.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        print(name, (folder / f"{name}.png").stat().st_size, truth)


if __name__ == "__main__":
    main()
