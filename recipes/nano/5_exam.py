"""Grades nano on 1,000 held-out scenes, beside the blind and majority baselines.

Command:  python recipes/nano/5_exam.py [FOLDER [SCENES]]
Result:   the tables of the model card, and build/nano/exam.json with every figure, also by name.
"""

import json
import logging
import sys

import torch
from common import BUILD, sprites

from foveal.engine.model import load
from foveal.eval.run import evaluate
from foveal.eval.tasks.scenes import SceneTask


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    scenes = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    model, pictures = load(folder), sprites()
    written = {}
    for wordings in ("test", "unseen"):
        task = SceneTask.generated(pictures, scenes=scenes, wordings=wordings)
        result = evaluate(model, task, blind=wordings == "test", batch=64)
        names = {s for kind in ("name", "side", "find") for s in result.subjects.get(kind, {})}
        print(f"\n{task.name}: {scenes} scenes, {len(names)} names asked about, {result.seconds:.0f} s\n")
        print(result.table())
        written[task.name] = result.to_json()
    (BUILD / "exam.json").write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
