"""What rounding costs in quality: the small model inside the package in 8 and 4 bits beside float32.

    python benchmarks/quantization_quality.py [--limit 120] [--out benchmarks/results/quantization.md]

Asked are the stored scenes of the tests. Along the answers of the float32 model: mean Kullback-Leibler divergence of
the next token's distribution and share of equal best tokens; then the exam's score with each model's own answers. The
activation-aware form looks at answers about other scenes.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import foveal
from foveal.core.packed import Packed
from foveal.data.sprites import SpriteSet
from foveal.eval.run import evaluate
from foveal.eval.tasks.scenes import SceneTask
from foveal.families.convert import convert
from foveal.families.describe import folder_of
from foveal.families.quantize import Quantization
from foveal.families.quantized import rounding

DATA = Path(__file__).parent.parent / "tests" / "data_files"
FORMS: Sequence[tuple[str, Quantization | None, bool]] = (
    ("float32", None, False),
    ("bfloat16", None, False),
    ("int8, rows", Quantization(bits=8), False),
    ("int4, groups of 64", Quantization(bits=4, group=64), False),
    ("int4, groups of 64, AWQ", Quantization(bits=4, group=64), True),
    ("int4, groups of 32", Quantization(bits=4, group=32), False),
    ("int4, groups of 32, AWQ", Quantization(bits=4, group=32), True),
)


def answered(model: foveal.Model, talks: Sequence[Any]) -> list[Any]:
    """The talks with the model's answers."""
    answers = model.chat_all(talks, temperature=0.0, max_tokens=120)
    return [[*talk, {"role": "assistant", "content": answer.raw}] for talk, answer in zip(talks, answers, strict=True)]


def scores(model: foveal.Model, talks: Sequence[Any]) -> Iterator[torch.Tensor]:
    """Log-probabilities of every next token of each talk's answer."""
    with torch.inference_mode():
        for talk in talks:
            prompt = len(model.process(talk[:-1]).tokens)
            yield model.forward(model.process(talk, generate=False)).logits[prompt - 1 : -1].float().log_softmax(-1)


def opened(form: Quantization | None, aware: bool, name: str, seen: Sequence[Any], folder: Path) -> foveal.Model:
    if form is None:
        return foveal.load(dtype=name, device="cpu")

    def talks(processor: Any) -> Iterator[Packed]:
        for talk in seen:
            yield processor.process(talk, generate=False)

    convert(folder_of(None), folder, quantize=rounding(form, talks if aware else None))
    return foveal.load(folder, dtype="float32", device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--seen", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    task = SceneTask.stored(DATA / "scenes")
    other = SceneTask.generated(SpriteSet.load(DATA / "sprites.npz"), scenes=given.seen, seed=7)
    full = foveal.load(dtype="float32", device="cpu")
    asked = answered(full, [s.messages for s in list(task.samples())[: given.limit : 3]])
    seen = answered(full, [s.messages for s in list(other.samples())[: given.seen]])
    wanted = list(scores(full, asked))
    tokens = sum(len(w) for w in wanted)
    lines = [
        "| form | KL, nats | equal best tokens | exam |",
        "| --- | --- | --- | --- |",
    ]
    rows = []
    for name, form, aware in FORMS:
        with tempfile.TemporaryDirectory() as temporary:
            model = opened(form, aware, name, seen, Path(temporary) / "model")
            found = list(scores(model, asked))
            divergence = sum(float((w.exp() * (w - f)).sum()) for w, f in zip(wanted, found, strict=True)) / tokens
            equal = sum(int((w.argmax(-1) == f.argmax(-1)).sum()) for w, f in zip(wanted, found, strict=True)) / tokens
            result = evaluate(model, task, limit=given.limit, blind=False)
            right, count = (sum(getattr(f, k) for f in result.figures.values()) for k in ("right", "count"))
            row = f"| {name} | {divergence:.5f} | {equal:.2%} | {right / count:.1%} of {count} |"
            print(row, flush=True)
            rows.append({"form": name, "kl": divergence, "equal": equal, "right": right / count})
            lines.append(row)
    note = f"{len(asked)} answers with {tokens} tokens; {platform.machine()}, torch {torch.__version__}."
    print(json.dumps(rows))
    if given.out:
        given.out.write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
