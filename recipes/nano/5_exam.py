"""Grades nano on 1,000 held-out scenes, beside the blind and majority baselines.

Command:  python recipes/nano/split_report.py && python recipes/nano/5_exam.py [FOLDER [SCENES]]
Result:   the tables of the model card, and build/nano/exam.json with every figure, also by name.
"""

import json
import logging
import sys

import torch
from common import BUILD, sprites

from foveal.engine.model import load
from foveal.eval.run import Result, evaluate
from foveal.eval.tasks.scenes import SceneTask

FAR = 0.06
"""Distance of pictures (see split_report.py) below which two are nearly the same drawing."""


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
        print(far_names(result))
        written[task.name] = result.to_json()
    (BUILD / "exam.json").write_text(json.dumps(written, indent=1, ensure_ascii=False), encoding="utf-8")


def far_names(result: Result) -> str:
    """The figures of names whose held-out pictures are at least `FAR` from every training picture of the name."""
    rows = json.loads((BUILD / "split.json").read_text(encoding="utf-8"))
    near = {row["name"] for row in rows if row["distance"] < FAR}
    lines = []
    for kind in ("name", "side", "find"):
        figures = [f for subject, f in result.subjects.get(kind, {}).items() if subject not in near]
        count, right = sum(f.count for f in figures), sum(f.right for f in figures)
        lines.append(f"{kind} {right / max(1, count):.1%} of {count}")
    return (
        f"only names without a picture nearer than {FAR} in training ({len({r['name'] for r in rows} - near)}): "
        + "; ".join(lines)
    )


if __name__ == "__main__":
    main()
