"""Writes the fixed held-out scenes that the repository carries: 40 for the slow test, and some to look at.

Command:  python recipes/nano/6_examples.py
Result:   tests/data_files/scenes (pictures, questions, truths, and what the shipped model must reach) and
          examples/ (PNG with a truth file).
"""

import json
from collections import Counter
from pathlib import Path

from common import BUILD, sprites
from PIL import Image

from foveal.data.scenes import SceneMaker
from foveal.eval.tasks.scenes import EXAM, SceneTask

SEED = 7
GRADED = ("name", "present", "count_all", "describe", "find")
SCALE = 3
"""Examples are larger than what the model sees, as people's pictures are."""
SHOWN = {"scene": 16}
"""Example -> number of its scene, of the kind "distinct": one that nano gets right, as many are not (see its card)."""


def main() -> None:
    pictures = sprites()
    stored = Path("tests/data_files/scenes")
    SceneTask.generated(pictures, scenes=40, seed=SEED).store(stored, lossless=False)
    least = json.dumps(bounds(SceneTask.stored(stored)), indent=1)
    (stored / "least.json").write_text(least + "\n", encoding="utf-8")
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


def bounds(task: SceneTask) -> dict[str, float]:
    """What the shipped model must reach on the stored scenes: two standard errors below its exam (5_exam.py)."""
    exam = json.loads((BUILD / "exam.json").read_text(encoding="utf-8"))["scenes"]["figures"]
    asked = Counter(sample.kind for sample in task.samples())
    shares = {kind: exam[kind]["share"] for kind in GRADED}
    return {kind: round(p - 2 * (p * (1 - p) / asked[kind]) ** 0.5, 3) for kind, p in shares.items()}


if __name__ == "__main__":
    main()
