"""Questions about a scene, with their answers: what nano learns to say and what it is graded on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.core.box import Box, Space
from foveal.data.scenes import Placed, Scene
from foveal.data.shapes import COLOURS, SHAPES

KINDS = ("name", "side", "describe", "find", "present", "count", "count_all", "colour", "relation")

TEMPLATES: Mapping[str, Sequence[str]] = {
    "name": (
        "What is this?",
        "What is it?",
        "What is in the image?",
        "What is in this picture?",
        "What do you see?",
        "What object is this?",
        "Name the object.",
        "What is shown here?",
        "What is that?",
        "What do you see here?",
        "What is in the picture?",
        "What object is in the image?",
        "Which object is this?",
        "What object do you see?",
        "Name this object.",
        "Tell me what you see.",
        "What is the object in the picture?",
        "Can you tell me what this is?",
    ),
    "side": (
        "What is on the far {side}?",
        "Which object is on the far {side}?",
        "What do you see on the far {side}?",
        "What is on the {side}?",
        "What object is on the far {side}?",
        "Name the object on the far {side}.",
        "Which object do you see on the {side}?",
        "What is the object on the far {side} of the image?",
    ),
    "describe": (
        "Describe the image.",
        "Describe this image.",
        "Describe the picture.",
        "Please describe this picture.",
        "What objects are in the image?",
        "What can you see in this image?",
        "List all objects.",
        "Describe the scene.",
        "Describe what you see.",
        "Describe the objects in the picture.",
        "What objects do you see?",
        "Name all objects.",
        "Name every object in the image.",
        "List every object in the picture.",
        "What are the objects in this image?",
        "Tell me everything you see.",
        "What is in the image? Describe it.",
        "What is in the picture? Name everything.",
    ),
    "find": (
        "Find the {name}.",
        "Where is the {name}?",
        "Locate the {name}.",
        "Find the {name} in the image.",
        "Please find the {name}.",
        "Find every {name}.",
        "Detect the {name}.",
        "Show me the {name}.",
        "Where is the {name} in this picture?",
        "Find the {name} in this picture.",
        "Where is the {name} in the image?",
        "Can you find the {name}?",
        "Where do you see the {name}?",
        "Locate the {name} in the picture.",
        "Detect every {name} in the image.",
        "Show me where the {name} is.",
        "Find {a} {name}.",
        "Where is {a} {name}?",
        "Give the location of the {name}.",
        "Give me the location of the {name}.",
        "Box the {name}.",
        "Give me the box of the {name}.",
    ),
    "present": (
        "Is there {a} {name}?",
        "Is there {a} {name} in the image?",
        "Do you see {a} {name}?",
        "Can you see {a} {name} in this picture?",
        "Is there {a} {name} here?",
        "Is there {a} {name} in the picture?",
        "Can you see {a} {name}?",
        "Do you see {a} {name} in the image?",
        "Is {a} {name} in the image?",
        "Is {a} {name} in this picture?",
        "Does this picture show {a} {name}?",
        "Can you find {a} {name} here?",
        "Tell me, is there {a} {name}?",
        "Does the image show {a} {name}?",
    ),
    "count": (
        "How many {names} are there?",
        "How many {names} are in the image?",
        "How many {names} do you see?",
        "Count the {names}.",
        "How many {names} are in this picture?",
        "How many {names} can you find?",
        "Count all {names} in the image.",
        "Tell me how many {names} there are.",
        "How many {names} can you see in the picture?",
    ),
    "count_all": (
        "How many objects are there?",
        "How many objects are in the image?",
        "Count the objects.",
        "How many objects do you see?",
        "Count all objects in the picture.",
        "How many objects can you see?",
        "How many things are there?",
        "Tell me how many objects there are.",
        "How many things are in the picture?",
    ),
    "colour": (
        "What colour is the {name}?",
        "What color is the {name}?",
        "What is the color of the {name}?",
        "What is the colour of the {name}?",
        "What colour does the {name} have?",
        "Tell me the colour of the {name}.",
        "What color is the {name} in the picture?",
        "Which colour does the {name} have?",
    ),
    "relation": (
        "Is the {name} left or right of the {other}?",
        "Is the {name} to the left or to the right of the {other}?",
        "Is the {name} on the left or on the right of the {other}?",
        "Is the {name} left of the {other} or right of it?",
        "Where is the {name}, left or right of the {other}?",
        "Do you see the {name} left or right of the {other}?",
        "On which side of the {other} is the {name}, left or right?",
    ),
}
"""Wordings of each kind of question. The last of each kind is kept out of training (see `wordings`)."""

WEIGHTS: Mapping[str, float] = dict.fromkeys(KINDS, 1.0) | {
    "find": 1.6, "present": 1.6, "count": 1.5, "colour": 2.0, "side": 2.0, "name": 2.0, "describe": 1.6,
}  # fmt: skip
"""How often each kind is asked in a conversation, before its scene gives or refuses the occasion."""


def wordings(kind: str, split: str) -> Sequence[str]:
    """Training: all but the last wording; "test": the same ones; "unseen": only the last."""
    every = TEMPLATES[kind]
    return every[-1:] if split == "unseen" else every[:-1]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its right answer.

    Attributes:
        kind: one of `KINDS`.
        text: what the user asks.
        answer: words and boxes in order.
        truth: the answer in the form that grading reads: a name, a list of names, a count, "yes" or "no", a
            colour, "left" or "right"; for "find" the boxes in pixels (none when the thing is absent).
        subject: what is asked about, if anything.
    """

    kind: str
    text: str
    answer: tuple[str | Box, ...]
    truth: str | int | tuple[str, ...] | tuple[tuple[float, float, float, float], ...]
    subject: str = ""


def article(word: str) -> str:
    """ "a" or "an"."""
    sound = word.lower()
    if sound.startswith(("uni", "ufo", "eu")):
        return "a"
    return "an" if sound[0] in "aeiou" else "a"


def joined(words: Sequence[str]) -> str:
    """ "a dog", "a dog and a cat", "a dog, a cat and a car"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


class Questioner:
    """Asks about scenes in the words of one split.

    Args:
        plurals: name -> plural of everything that can be in a scene; `SHAPES` are added.
        split: "train", "test" or "unseen"; see `wordings`.
    """

    def __init__(self, plurals: Mapping[str, str], split: str = "train") -> None:
        self.plurals = {**plurals, **{shape: shape + "s" for shape in SHAPES}}
        self.names = tuple(sorted(self.plurals))
        self.split = split
        self._ask: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
            "name": self._name,
            "side": self._side,
            "describe": self._describe,
            "find": self._find,
            "present": self._present,
            "count": self._count,
            "count_all": self._count_all,
            "colour": self._colour,
            "relation": self._relation,
        }

    def ask(self, kind: str, random: np.random.Generator, scene: Scene) -> Question | None:
        """A question of `kind`; None where the scene gives no occasion for one."""
        return self._ask[kind](random, scene)

    def conversation(
        self,
        random: np.random.Generator,
        scene: Scene,
        count: int,
        weights: Mapping[str, float] | None = None,
        names_first: float = 0.6,
    ) -> list[Question]:
        """`count` different questions; kinds of greater weight come more often (`WEIGHTS` where not given).

        In the share `names_first` of conversations those that ask for names come first: later on, names have been
        said already and need no look at the picture.
        """
        chances = {**WEIGHTS, **(weights or {})}
        if scene.kind == "count":
            chances |= {"count": 3.0, "count_all": 1.5}
        kinds = [k for k in KINDS for _ in range(2)]
        p = np.array([chances[k] for k in kinds])
        asked: list[Question] = []
        for at in random.choice(len(kinds), size=len(kinds), replace=False, p=p / p.sum()):
            question = self.ask(kinds[int(at)], random, scene)
            if question is not None and all(question.text != q.text for q in asked):
                asked.append(question)
            if len(asked) == count:
                break
        if random.random() < names_first:
            asked.sort(key=lambda q: q.kind not in ("name", "side", "describe"))
        return asked

    def _words(self, random: np.random.Generator, kind: str, **values: str) -> str:
        known = wordings(kind, self.split)
        # The first wording is the one that documentation shows; it is asked most often.
        at = 0 if random.random() < 0.3 else int(random.integers(len(known)))
        return known[at].format(**values)

    def _absent(self, random: np.random.Generator, scene: Scene) -> str:
        here = {o.name for o in scene.objects}
        while True:
            name = self.names[int(random.integers(len(self.names)))]
            if name not in here:
                return name

    def _called(self, thing: Placed) -> str:
        words = f"{thing.colour} {thing.name}" if thing.colour else thing.name
        return f"{article(words)} {words}"

    def _many(self, count: int, name: str) -> str:
        if count == 0:
            return f"There is no {name}."
        return f"There is 1 {name}." if count == 1 else f"There are {count} {self.plurals[name]}."

    def _name(self, random: np.random.Generator, scene: Scene) -> Question | None:
        if len(scene.objects) != 1:
            return None
        thing = scene.objects[0]
        return Question(
            kind="name",
            text=self._words(random, "name"),
            answer=(f"This is {self._called(thing)}.",),
            truth=thing.name,
            subject=thing.name,
        )

    def _side(self, random: np.random.Generator, scene: Scene) -> Question | None:
        if scene.kind != "distinct" or len(scene.objects) < 2:
            return None
        side = ("left", "right", "top", "bottom")[int(random.integers(4))]
        axis, sign = (0 if side in ("left", "right") else 1), (1 if side in ("left", "top") else -1)
        order = sorted(scene.objects, key=lambda o: sign * o.centre[axis])
        if abs(order[0].centre[axis] - order[1].centre[axis]) < 0.08 * scene.size[axis]:
            return None
        called = self._called(order[0])
        return Question(
            kind="side",
            text=self._words(random, "side", side=side),
            answer=(f"{called[0].upper()}{called[1:]}.",),
            truth=order[0].name,
            subject=side,
        )

    def _describe(self, random: np.random.Generator, scene: Scene) -> Question:
        things = sorted(scene.objects, key=lambda o: o.centre[0])
        if scene.kind == "count" and not things[0].colour:
            answer = self._many(len(things), things[0].name)
            if len(things) == 1:
                answer = f"There is {self._called(things[0])}."
        elif len(things) == 1:
            answer = f"There is {self._called(things[0])}."
        else:
            answer = f"There are {len(things)} objects: {joined([self._called(o) for o in things])}."
        return Question(
            kind="describe",
            text=self._words(random, "describe"),
            answer=(answer,),
            truth=tuple(o.name for o in things),
        )

    def _find(self, random: np.random.Generator, scene: Scene) -> Question:
        absent = random.random() < 0.15
        name = self._absent(random, scene) if absent else _any(random, scene).name
        text = self._words(random, "find", name=name, a=article(name))
        things = sorted((o for o in scene.objects if o.name == name), key=lambda o: o.box)
        boxes = tuple(Box(label=name, corners=o.box, space=Space.ORIGINAL_PX) for o in things)
        answer: tuple[str | Box, ...] = boxes or (f"There is no {name}.",)
        return Question(kind="find", text=text, answer=answer, truth=tuple(o.box for o in things), subject=name)

    def _present(self, random: np.random.Generator, scene: Scene) -> Question:
        absent = random.random() < 0.5
        name = self._absent(random, scene) if absent else _any(random, scene).name
        text = self._words(random, "present", name=name, a=article(name))
        answer = f"No, there is no {name}." if absent else f"Yes, there is {article(name)} {name}."
        return Question(kind="present", text=text, answer=(answer,), truth="no" if absent else "yes", subject=name)

    def _count(self, random: np.random.Generator, scene: Scene) -> Question:
        absent = random.random() < 0.08
        name = self._absent(random, scene) if absent else _any(random, scene).name
        count = sum(o.name == name for o in scene.objects)
        text = self._words(random, "count", names=self.plurals[name])
        return Question(kind="count", text=text, answer=(self._many(count, name),), truth=count, subject=name)

    def _count_all(self, random: np.random.Generator, scene: Scene) -> Question:
        count = len(scene.objects)
        answer = "There is 1 object." if count == 1 else f"There are {count} objects."
        return Question(kind="count_all", text=self._words(random, "count_all"), answer=(answer,), truth=count)

    def _colour(self, random: np.random.Generator, scene: Scene) -> Question | None:
        plain = [o for o in scene.objects if o.colour]
        if len({o.name for o in plain}) < len(plain) or not plain:
            return None
        thing = plain[int(random.integers(len(plain)))]
        return Question(
            kind="colour",
            text=self._words(random, "colour", name=thing.name),
            answer=(f"The {thing.name} is {thing.colour}.",),
            truth=thing.colour,
            subject=thing.name,
        )

    def _relation(self, random: np.random.Generator, scene: Scene) -> Question | None:
        if scene.kind != "distinct" or len(scene.objects) < 2:
            return None
        a, b = (scene.objects[int(i)] for i in random.choice(len(scene.objects), 2, replace=False))
        if abs(a.centre[0] - b.centre[0]) < 0.1 * scene.size[0]:
            return None
        side = "left" if a.centre[0] < b.centre[0] else "right"
        return Question(
            kind="relation",
            text=self._words(random, "relation", name=a.name, other=b.name),
            answer=(f"The {a.name} is {side} of the {b.name}.",),
            truth=side,
            subject=a.name,
        )


def _any(random: np.random.Generator, scene: Scene) -> Placed:
    return scene.objects[int(random.integers(len(scene.objects)))]


def vocabulary_texts(plurals: Mapping[str, str]) -> list[str]:
    """Every piece of text that nano is asked with or answers with: what its vocabulary is chosen from."""
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n", "tool\n", "\n", "Yes, No, 0123456789"]
    both = {**plurals, **{shape: shape + "s" for shape in SHAPES}}
    for kind in KINDS:
        for wording in TEMPLATES[kind]:
            sides = ("left", "right", "top", "bottom")
            texts += [wording.format(name="x", names="x", other="x", a=a, side=s) for a in ("a", "an") for s in sides]
    for name, plural in both.items():
        a = article(name)
        texts += [
            f"This is {a} {name}. {a.upper()[0]}{a[1:]} {name}. the {name}. The {name} is left of the {name}.",
            f"{name}",
            f"There are 3 {plural}. There is 1 {name}. There is no {name}. How many {plural} {name}? every {name}.",
            f"objects: {a} {name}, {a} {name} and {a} {name}. Yes, there is. No, there is no",
        ]
    texts += [f"The circle is {c}. {article(c)} {c} circle. {c}" for c in COLOURS]
    texts += ["A An", "(0,12),(345,678)", "(9,8),(7,6)"]
    return texts
