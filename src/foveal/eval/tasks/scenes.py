"""Nano's own exam: questions about scenes of pictures that it never trained on."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveal.core.box import Box, Space
from foveal.core.errors import ConfigError
from foveal.data.questions import KINDS, Question, Questioner
from foveal.data.scenes import Scene, SceneMaker, SceneSettings
from foveal.data.shapes import COLOURS, SHAPES
from foveal.data.sprites import SpriteSet, read_names
from foveal.eval.metrics import Mentions, f1, first_of, matched, number
from foveal.eval.task import Guess, Said, Sample

EXAM = SceneSettings(kinds=(0.3, 0.45, 0.25))
"""Look of the exam's scenes: gently turned and tinted, never bent."""

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question about one picture; `truth` as in `foveal.data.questions.Question`."""

    kind: str
    text: str
    truth: Any
    subject: str


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A picture, as a file or in memory, and what is asked about it."""

    image: Path | Image.Image
    size: tuple[int, int]
    questions: tuple[Asked, ...]


def plurals() -> dict[str, str]:
    """English name -> plural of everything that scenes show."""
    return {n.name: n.plural for n in read_names()} | {shape: shape + "s" for shape in SHAPES}


class SceneTask:
    """Questions about scenes.

    Figures: name, side (name of what is farthest left, right, up or down), describe (F1 of the names),
    describe_exact, find (IoU at least 0.5 with the one thing asked for), find_many (all of several), find_absent
    (no box for what is not there), present, count (1 to 5 equal things), count_mixed (none or one of something
    among other things), count_all, colour, relation.
    """

    def __init__(self, pictured: Iterable[Pictured], name: str = "scenes") -> None:
        self.name = name
        self.pictured = tuple(pictured)
        self._mentions = Mentions({form: n for n, plural in plurals().items() for form in (n, plural)})
        self._samples = self._build()
        self._fixed = self._most_frequent()

    @classmethod
    def generated(
        cls,
        sprites: SpriteSet,
        *,
        scenes: int = 1000,
        seed: int = 2026,
        wordings: str = "test",
        settings: SceneSettings = EXAM,
    ) -> "SceneTask":
        """Scenes number 0 to `scenes` - 1 of the test split; one question of every kind that fits each.

        `wordings` is "test" for wordings known from training and "unseen" for those kept out of it.
        """
        maker, asker = SceneMaker(sprites, "test", settings, seed), Questioner(plurals(), wordings)
        pictured = []
        for index in range(scenes):
            scene = maker.make(index)
            random = np.random.default_rng([seed, index, 2])
            asked = [asker.ask(kind, random, scene) for kind in KINDS]
            pictured.append(
                Pictured(
                    image=Image.fromarray(scene.image),
                    size=scene.size,
                    questions=tuple(
                        Asked(kind=_figure(q, scene), text=q.text, truth=q.truth, subject=q.subject) for q in asked if q
                    ),
                )
            )
        return cls(pictured, "scenes" if wordings == "test" else "scenes, unseen wordings")

    @classmethod
    def stored(cls, folder: Path) -> "SceneTask":
        """Reads the pictures and `scenes.json` that `store` wrote. Raises `ConfigError` when they are damaged."""
        path = folder / "scenes.json"
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            pictured = [
                Pictured(
                    image=folder / row["file"],
                    size=(row["size"][0], row["size"][1]),
                    questions=tuple(Asked(**{**q, "truth": _frozen(q["truth"])}) for q in row["questions"]),
                )
                for row in rows
            ]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is no stored scene task: {error!r}.") from None
        return cls(pictured, f"scenes in {folder.name}")

    def store(self, folder: Path, *, lossless: bool = True) -> None:
        """Writes the pictures as WebP, and `scenes.json` with their questions and truths."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index, pictured in enumerate(self.pictured):
            file = f"{index:03d}.webp"
            if isinstance(pictured.image, Image.Image):
                pictured.image.save(folder / file, lossless=lossless, quality=88, method=4)
            rows.append({"file": file, "size": pictured.size, "questions": [vars(q) for q in pictured.questions]})
        text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        (folder / "scenes.json").write_text(text, encoding="utf-8")

    def samples(self) -> Sequence[Sample]:
        return self._samples

    def grade(self, sample: Sample, answer: Said) -> Mapping[str, float]:
        """Scores of one answer, by figure; see the class."""
        text, truth = answer.text, sample.truth
        match sample.kind:
            case "name" | "side":
                return {sample.kind: float(self._mentions(text) == [truth])}
            case "describe":
                found = self._described(text)
                score = f1(found, truth)
                return {"describe": score, "describe_exact": float(score == 1.0)}
            case "find":
                return self._grade_find(answer, truth)
            case "present":
                return {"present": float(first_of(text, ("yes", "no")) == truth)}
            case "count" | "count_mixed" | "count_all":
                return {sample.kind: float(number(text) == truth)}
            case "colour":
                return {"colour": float(first_of(text, tuple(COLOURS)) == truth)}
            case _:
                return {"relation": float(first_of(text, ("left", "right")) == truth)}

    def majority(self, sample: Sample) -> Said:
        """The fixed answer that is right most often for this kind of question."""
        if sample.kind != "find":
            return Guess(self._fixed[sample.kind])
        width, height = self.pictured[sample.number // len(KINDS)].size
        left, top, right, bottom = self._box
        corners = (left * width, top * height, right * width, bottom * height)
        return Guess("", (Box(label="", corners=corners, space=Space.ORIGINAL_PX),))

    def _grade_find(self, answer: Said, truth: Sequence[Corners]) -> Mapping[str, float]:
        wanted = [Box(label="", corners=c, space=Space.ORIGINAL_PX) for c in truth]
        if not wanted:
            return {"find_absent": float(not answer.boxes)}
        hits = matched(answer.boxes, wanted, 0.5)
        if len(wanted) == 1:
            return {"find": float(hits == 1 and len(answer.boxes) == 1)}
        return {"find_many": hits / max(len(wanted), len(answer.boxes))}

    def _described(self, text: str) -> list[str]:
        """Names in a description; "3 dogs" counts three times."""
        found = self._mentions(text)
        several = number(text)
        return found * several if len(found) == 1 and several and several > 1 else found

    def _build(self) -> tuple[Sample, ...]:
        samples = []
        for index, pictured in enumerate(self.pictured):
            empty = Image.new("RGB", pictured.size, (128, 128, 128))
            for place, asked in enumerate(pictured.questions):
                text = {"type": "text", "text": asked.text}
                seen, blind = ({"type": "image", "image": image} for image in (pictured.image, empty))
                samples.append(
                    Sample(
                        number=index * len(KINDS) + place,
                        messages=[{"role": "user", "content": [seen, text]}],
                        blind=[{"role": "user", "content": [blind, text]}],
                        kind=asked.kind,
                        truth=asked.truth,
                        subject=asked.subject if asked.kind != "side" else asked.truth,
                    )
                )
        return tuple(samples)

    def _most_frequent(self) -> dict[str, str]:
        """For each kind the fixed answer that is right most often on this very task."""
        truths: dict[str, Counter[Any]] = {}
        boxes = []
        for sample in self._samples:
            if sample.kind == "find":
                width, height = self.pictured[sample.number // len(KINDS)].size
                boxes += [np.array(c) / (width, height, width, height) for c in sample.truth]
            else:
                truths.setdefault(sample.kind, Counter())[sample.truth] += 1
        self._box = np.median(boxes, axis=0) if boxes else np.array([0.25, 0.25, 0.75, 0.75])
        fixed = {}
        for kind, counted in truths.items():
            truth = counted.most_common(1)[0][0]
            fixed[kind] = ", ".join(truth) if isinstance(truth, tuple) else str(truth)
        return fixed


def _figure(question: Question, scene: Scene) -> str:
    """Counting 0 or 1 among different things is graded apart: always answering 1 would look good."""
    return "count_mixed" if question.kind == "count" and scene.kind != "count" else question.kind


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
