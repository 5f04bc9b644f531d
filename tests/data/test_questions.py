"""Questions and answers say what the scene shows."""

from pathlib import Path

import numpy as np
import pytest

from foveal.core.box import Box
from foveal.data.questions import KINDS, TEMPLATES, Questioner, article, joined, wordings
from foveal.data.scenes import Scene, SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet, read_names

TINY = Path(__file__).parent.parent / "data_files" / "sprites.npz"
PLURALS = {n.name: n.plural for n in read_names()}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    maker = SceneMaker(SpriteSet.load(TINY), "train", SceneSettings(shape_share=0.4, objects=(2, 4), backgrounds=10))
    return [maker.make(i) for i in range(60)]


def test_every_answer_is_true(scenes: list[Scene]) -> None:
    asker, random = Questioner(PLURALS), np.random.default_rng(0)
    asked = set()
    for scene in scenes:
        here = [o.name for o in scene.objects]
        for kind in KINDS:
            q = asker.ask(kind, random, scene)
            if q is None:
                continue
            asked.add(kind)
            words = "".join(a for a in q.answer if isinstance(a, str))
            boxes = [a for a in q.answer if isinstance(a, Box)]
            if kind == "name":
                assert here == [q.truth] and f" {q.truth}." in words
            elif kind == "side":
                axis, sign = (0, 1) if q.subject in ("left", "right") else (1, 1)
                sign = 1 if q.subject in ("left", "top") else -1
                best = min(scene.objects, key=lambda o: sign * o.centre[axis])
                assert q.truth == best.name and words.lower().endswith(f"{best.name}.".lower())
            elif kind == "describe":
                assert sorted(q.truth) == sorted(here)
                assert all(n in words or asker.plurals[n] in words for n in here)
            elif kind == "find":
                assert [b.corners for b in boxes] == list(q.truth)
                assert {b.corners for b in boxes} == {o.box for o in scene.objects if o.name == q.subject}
                assert bool(words) != bool(boxes)
            elif kind == "present":
                assert (q.subject in here) == (q.truth == "yes") == words.startswith("Yes")
            elif kind == "count":
                assert q.truth == here.count(q.subject) and (str(q.truth) in words or "no " in words)
            elif kind == "count_all":
                assert q.truth == len(here) and str(q.truth) in words
            elif kind == "colour":
                assert (q.subject, q.truth) in {(o.name, o.colour) for o in scene.objects}
                assert words == f"The {q.subject} is {q.truth}."
            else:
                other = next(o for o in scene.objects if words.endswith(f" of the {o.name}."))
                me = next(o for o in scene.objects if o.name == q.subject)
                assert (me.centre[0] < other.centre[0]) == (q.truth == "left") and f" {q.truth} of" in words
    assert asked == set(KINDS)


def test_yes_and_no_are_even(scenes: list[Scene]) -> None:
    asker, random = Questioner(PLURALS), np.random.default_rng(1)
    truths = [asker.ask("present", random, s).truth for s in scenes for _ in range(10)]  # type: ignore[union-attr]
    assert 0.42 < truths.count("yes") / len(truths) < 0.58


def test_unseen_wordings_are_never_trained_on(scenes: list[Scene]) -> None:
    for kind in KINDS:
        assert set(wordings(kind, "unseen")).isdisjoint(wordings(kind, "train"))
        assert set(wordings(kind, "test")) == set(wordings(kind, "train"))
        assert len(set(TEMPLATES[kind])) == len(TEMPLATES[kind]) >= 4
    seen, unseen = Questioner(PLURALS), Questioner(PLURALS, "unseen")
    random = np.random.default_rng(2)
    known = {seen.ask("count_all", random, s).text for s in scenes}  # type: ignore[union-attr]
    assert unseen.ask("count_all", random, scenes[0]).text not in known  # type: ignore[union-attr]


def test_conversations_do_not_repeat_a_question(scenes: list[Scene]) -> None:
    asker = Questioner(PLURALS)
    for number, scene in enumerate(scenes):
        texts = [q.text for q in asker.conversation(np.random.default_rng(number), scene, 7)]
        assert len(texts) == len(set(texts)) >= 5


def test_small_words() -> None:
    assert [article(w) for w in ("dog", "apple", "unicorn", "hourglass", "umbrella", "eggplant")] == [
        "a", "an", "a", "a", "an", "an",
    ]  # fmt: skip
    assert joined(["a"]) == "a" and joined(["a", "b"]) == "a and b" and joined(["a", "b", "c"]) == "a, b and c"


def test_weights_say_what_is_asked_most(scenes: list[Scene]) -> None:
    asker, random = Questioner(PLURALS), np.random.default_rng(3)
    often = {"present": 50.0}
    asked = [asker.conversation(random, s, 1, often)[0].kind for s in scenes if s.kind != "count"]
    plain = [asker.conversation(random, s, 1)[0].kind for s in scenes if s.kind != "count"]
    assert asked.count("present") > 0.7 * len(asked) > plain.count("present")
