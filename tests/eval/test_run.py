"""The scene task and the evaluation loop: a knowing answerer gets everything, a fixed one gets its share."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveal.core.box import Box, Space
from foveal.core.errors import ConfigError, InputError
from foveal.data.scenes import SceneSettings
from foveal.data.sprites import SpriteSet
from foveal.eval.run import evaluate
from foveal.eval.task import Guess, Sample
from foveal.eval.tasks.scenes import SceneTask

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"
SETTINGS = SceneSettings(kinds=(0.3, 0.4, 0.3), objects=(2, 4), shape_share=0.4, backgrounds=10)


@pytest.fixture(scope="module")
def task() -> SceneTask:
    return SceneTask.generated(SpriteSet.load(TINY), scenes=40, settings=SETTINGS)


def right_answer(sample: Sample) -> Guess:
    truth = sample.truth
    if sample.kind == "find":
        boxes = tuple(Box(label=sample.subject, corners=c, space=Space.ORIGINAL_PX) for c in truth)
        return Guess("" if boxes else "There is none.", boxes)
    if sample.kind == "describe":
        return Guess(" and ".join(truth))
    words = {"name": "This is a {}.", "present": "{}, indeed.", "relation": "It is {} of it."}
    return Guess(words.get(sample.kind, "It is {}.").format(truth))


class Knows:
    """Answers by the truth of the conversation it recognises."""

    def __init__(self, task: SceneTask) -> None:
        self.by_conversation = {id(s.messages): s for s in task.samples()}
        self.batches: list[int] = []
        self.options: dict[str, Any] = {}

    def chat_all(self, conversations: Any, **options: Any) -> list[Guess]:
        self.batches.append(len(conversations))
        self.options = options
        known = [self.by_conversation.get(id(c)) for c in conversations]
        return [right_answer(s) if s else Guess("I see nothing.") for s in known]


def test_who_knows_gets_everything_and_who_is_blind_does_not(task: SceneTask) -> None:
    model, seen = Knows(task), []
    result = evaluate(model, task, batch=16, progress=lambda done, total: seen.append((done, total)))
    assert {n: f.share for n, f in result.figures.items()} == dict.fromkeys(result.figures, 1.0)
    assert not result.misses
    assert {"name", "find", "present", "count", "count_all", "colour", "relation", "side", "describe_exact"} <= set(
        result.figures
    )
    for name in set(result.figures) - {"find_absent"}:
        assert result.blind[name].share == 0.0, name
        assert result.majority[name].share < 1.0, name
    total = 2 * len(task.samples())
    assert seen[-1] == (total, total) and max(model.batches) == 16
    assert model.options == {"temperature": 0.0, "max_tokens": 160}
    assert sum(f.count for f in result.subjects["name"].values()) == result.figures["name"].count
    assert result.table().count("\n") == len(result.figures) + 1
    json.dumps(result.to_json())


def test_wrong_answers_are_kept(task: SceneTask) -> None:
    class Wrong:
        def chat_all(self, conversations: Any, **options: Any) -> list[Guess]:
            return [Guess("zeppelin") for _ in conversations]

    result = evaluate(Wrong(), task, blind=False, limit=20, keep_misses=5)
    assert len(result.misses) == 5 and result.misses[0].answer == "zeppelin" and result.misses[0].question
    assert not result.blind
    assert all(f.share == 0.0 for n, f in result.figures.items() if n != "find_absent")
    with pytest.raises(InputError, match="at least 1"):
        evaluate(Wrong(), task, batch=0)


def test_majority_is_the_best_fixed_answer(task: SceneTask) -> None:
    truths = [s.truth for s in task.samples() if s.kind == "present"]
    result = evaluate(Knows(task), task, blind=False)
    best = max(truths.count(t) for t in set(truths)) / len(truths)
    assert result.majority["present"].share == pytest.approx(best)


def test_a_box_more_or_beside_is_wrong(task: SceneTask) -> None:
    sample = next(s for s in task.samples() if s.kind == "find" and len(s.truth) == 1)
    left, top, right, bottom = sample.truth[0]
    good = Box(label="", corners=sample.truth[0], space=Space.ORIGINAL_PX)
    half = Box(label="", corners=(left, top, left + 0.4 * (right - left), bottom), space=Space.ORIGINAL_PX)
    assert task.grade(sample, Guess("", (good,))) == {"find": 1.0}
    assert task.grade(sample, Guess("", (half,))) == {"find": 0.0}
    assert task.grade(sample, Guess("", (good, half))) == {"find": 0.0}


def test_a_stored_task_is_the_same_task(tmp_path: Path) -> None:
    task = SceneTask.generated(SpriteSet.load(TINY), scenes=5, settings=SETTINGS)
    task.store(tmp_path)
    copy = SceneTask.stored(tmp_path)
    assert len(copy.samples()) == len(task.samples())
    for a, b in zip(task.samples(), copy.samples(), strict=True):
        assert (a.kind, a.truth, a.subject, a.number) == (b.kind, b.truth, b.subject, b.number)
    stored = Image.open(copy.pictured[3].image)  # type: ignore[arg-type]
    assert stored.convert("RGB").tobytes() == task.pictured[3].image.tobytes()  # type: ignore[union-attr]
    (tmp_path / "scenes.json").write_text("{}")
    with pytest.raises(ConfigError, match="no stored scene task"):
        SceneTask.stored(tmp_path / "none")
