import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveal.core.box import Box, ImageView, Point, Space
from foveal.core.errors import InputError
from foveal.processing import grounding
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.segments import SpecialSegment, TextSegment

STYLE = JsonBoxes(space=Space.PROCESSED_PX)
VIEW = ImageView(original=(1000, 500), processed=(500, 250))
SHARE = st.floats(0, 1)
LABELS = ["", "cat", "猫 a", 'a "quoted" one', "{[}]", "back\\slash", "line\nbreak", "```", '{"bbox_2d": [1, 2, 3, 4]}']


def parse(text, view=VIEW, image=0, style=STYLE):
    return grounding.parse([TextSegment(text=text)], style, view, image)


def found(answer):
    boxes = [(b.label, tuple(round(c, 6) for c in b.corners), b.flags) for b in answer.boxes]
    return boxes, [(p.label, p.place, p.flags) for p in answer.points]


def there_and_back(size, shares, space, label, written):
    """The largest error, in the model's units, of a box that the model is shown and says again."""
    view = ImageView(original=size, processed=(max(28, size[0] // 28 * 28), max(28, size[1] // 28 * 28)))
    style = JsonBoxes(space=written)
    (x1, x2), (y1, y2) = sorted(shares[:2]), sorted(shares[2:])
    width, height = view.extent(space)
    box = Box(label=label, corners=(x1 * width, y1 * height, x2 * width, y2 * height), space=space)
    answer = grounding.parse(style.render([box], [view]), style, view, 0)
    (back,) = answer.boxes
    assert back.label == label.strip() and answer.text == label and not answer.broken
    assert back.space is Space.ORIGINAL_PX
    assert set(back.flags) <= {"empty"}
    assert 0 <= back.corners[0] <= back.corners[2] <= size[0] + 1e-6
    assert 0 <= back.corners[1] <= back.corners[3] <= size[1] + 1e-6
    sent, received = box.to(written, view).corners, back.to(written, view).corners
    return max(abs(a - b) for a, b in zip(sent, received, strict=True))


@pytest.mark.parametrize("written", [Space.PROCESSED_PX, Space.RELATIVE_1000])
def test_three_thousand_boxes_come_back_within_one_unit(written):
    rng = np.random.default_rng(0)
    sizes, shares = rng.integers(1, 8000, (3000, 2)).tolist(), rng.random((3000, 4)).tolist()
    worst = max(
        there_and_back(tuple(size), share, list(Space)[i % 4], LABELS[i % len(LABELS)], written)
        for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
    )
    assert worst <= 0.5 + 1e-6


@given(st.tuples(st.integers(1, 8000), st.integers(1, 8000)), st.tuples(SHARE, SHARE, SHARE, SHARE), st.text())
@example((1, 1), (0.0, 1.0, 0.0, 1.0), "x")
@settings(max_examples=200)
def test_odd_boxes_come_back_within_one_unit(size, shares, label):
    assert there_and_back(size, shares, Space.ORIGINAL_PX, label, Space.PROCESSED_PX) <= 0.5 + 1e-6


PIECES = [
    "```json\n", "```", "[", "]", "{", "}", '"', ",", "\n", '"bbox_2d": ', "[1, 2, 30, 40]", '"point_2d": [5, 6]',
    '"label": "cat"', '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}', "words ", "cat", "\\", ": ", "[1, 2", "`",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.data())
@settings(max_examples=600)
def test_no_answer_makes_reading_fail_or_lose_words(pieces, data):
    text = "".join(pieces)
    whole = parse(text)
    assert whole.text.count("words") == text.count("words")
    assert whole.text.count("cat") + sum(b.label == "cat" for b in whole.boxes) >= text.count("cat")
    for number in ("30", "40"):  # coordinates are in a box or among the words
        assert whole.text.count(number) + sum(2 * int(number) in b.corners for b in whole.boxes) >= text.count(number)
    assert "".join(whole.parts) == text
    # In pieces of any size the answer is the same, and what was shown stays.
    reader, at, shown = STYLE.reader(VIEW, 0), 0, ""
    while at < len(text):
        size = data.draw(st.integers(1, 9))
        reader.take(TextSegment(text=text[at : at + size]))
        at += size
        now = "".join(reader.text)
        assert now.startswith(shown)
        shown = now
    again = reader.finish()
    assert again == whole
    assert whole.text.startswith(shown)


ONE = '{"bbox_2d": [10, 20, 30, 40], "label": "cat"}'
CAT = ("cat", (20, 40, 60, 80), ())


@pytest.mark.parametrize(
    ("answer", "text", "boxes", "points"),
    [
        (f"```json\n[\n\t{ONE}\n]\n```", "cat", [CAT], []),
        (f"Here:\n```json\n[\n\t{ONE},\n\t{ONE}\n]\n```\nDone.", "Here:\ncat, cat\nDone.", [CAT, CAT], []),
        (f"[{ONE}]", "cat", [CAT], []),
        (f"{ONE} and {ONE}", "cat and cat", [CAT, CAT], []),
        (f"```\n{ONE}\n``` end", "cat end", [CAT], []),
        (f"```json\n[{ONE}]", "cat", [CAT], []),
        (f"```json\n[{ONE},\n", "cat", [CAT], []),
        (f"[{ONE}, so it is]", "cat, so it is]", [CAT], []),
        ('[{"point_2d": [5, 6], "label": "ear"}]', "ear", [], [("ear", (10, 12), ())]),
        ('{"point_2d": [5, 600]}', "", [], [("", (10, 500), ("clipped",))]),
        (
            '{"label": "cat", "point_2d": [5, 6], "bbox_2d": [10.0, 20, 30, 40]}', "cat", [CAT],
            [("cat", (10, 12), ())],
        ),
        ('[{"bbox_2d": [30, 40, 10, 20]}]', "", [("", (20, 40, 60, 80), ("swapped",))], []),
        ('[{"bbox_2d": [10, -20, 30, 4000]}]', "", [("", (20, 0, 60, 500), ("clipped",))], []),
        ('[{"bbox_2d": [10, 20, 10, 40]}]', "", [("", (20, 40, 20, 80), ("empty",))], []),
        (
            '[{"bbox_2d": [10, 20, 30, 40], "text_content": "Ünï \\u732b"}]', "Ünï 猫",
            [("Ünï 猫", (20, 40, 60, 80), ())], [],
        ),
        (
            '{"bbox_2d": [10, 20, 30, 40], "label": "cat", "score": 0.5}', '{"label": "cat", "score": 0.5}', [CAT], [],
        ),
        (
            '{"objects": [{"bbox_2d": [10, 20, 30, 40], "label": "cat"}], "n": 1}',
            '{"objects": [{"label": "cat"}], "n": 1}', [CAT], [],
        ),
        # JSON and braces that are no boxes
        ('```json\n{"total": 3, "items": [1, 2]}\n```', '```json\n{"total": 3, "items": [1, 2]}\n```', [], []),
        ("f(x) = {x : x > 0} [1] `a` \\frac{1}{2}", "f(x) = {x : x > 0} [1] `a` \\frac{1}{2}", [], []),
        ("```python\nd = {'a': [1]}\n```", "```python\nd = {'a': [1]}\n```", [], []),
        ("[1, 2, 3, 4]", "[1, 2, 3, 4]", [], []),
    ],
)  # fmt: skip
def test_answers(answer, text, boxes, points):
    read = parse(answer)
    assert read.text == text
    assert found(read) == (boxes, points)
    assert not read.broken


@pytest.mark.parametrize(
    ("answer", "text", "boxes"),
    [
        # cut off
        ('```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "ca', "ca", [("ca", "unclosed")]),
        ('[{"bbox_2d": [10, 20, 30, 40]', "", [("", "unclosed")]),
        ('[{"bbox_2d": [10, 20, 30, 40', "", [("", "unclosed")]),
        # quotes that were not escaped, Python's quotes, a missing comma or brace
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "a 5" disk"},\n' + ONE + "]", 'a 5" disk, cat',
         [('a 5" disk', "malformed"), ("cat", "malformed")]),
        ("[{'bbox_2d': [10, 20, 30, 40], 'label': 'cat'}]", "cat", [("cat", "malformed")]),
        ('{"bbox_2d": [10, 20, 30, 40] "label": "cat"}', "cat", [("cat", "malformed")]),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat",}]', "cat", [("cat", "malformed")]),
        ('[{"bbox_2d": [10, 20, 30, 40], "label": "cat"\n' + ONE + "]", "cat, cat",
         [("cat", "malformed"), ("cat", "malformed")]),
    ],
)  # fmt: skip
def test_damaged_json_gives_its_boxes_with_a_flag(answer, text, boxes):
    read = parse(answer)
    assert read.text == text
    assert [(b.label, *b.flags) for b in read.boxes] == boxes
    assert all(b.corners == (20, 40, 60, 80) for b in read.boxes)


@pytest.mark.parametrize(
    "damaged",
    [
        '{"bbox_2d": [1, 2, 3], "label": "a"}', '{"bbox_2d": [1, 2, 3, 4, 5]}', '{"bbox_2d": "1 2 3 4"}',
        '{"bbox_2d": [1, 2, "3", 4]}', '{"bbox_2d": [1, 2, NaN, 4]}', '{"bbox_2d": [1, 2, 3, 1e400]}',
        '{"bbox_2d": [true, 2, 3, 4]}', '{"point_2d": [1]}', '{"bbox_2d": [1, 2, 3', '{"bbox_2d": [1, 2 3, 4]}',
        '{"bbox_2d": [12345678901, 2, 3, 4]}',
    ],
)  # fmt: skip
def test_what_is_no_box_is_kept_and_named(damaged):
    read = parse(f"a {damaged}")
    assert read.boxes == () and read.points == ()
    assert read.broken == (damaged,)
    assert read.text == f"a {damaged}"


def test_without_an_image_boxes_stay_in_the_models_units():
    (box,) = parse('{"bbox_2d": [1, -2, 3, 4000]}', view=None).boxes
    assert box == Box(label="", corners=(1, 0, 3, 4000), space=Space.PROCESSED_PX, flags=("clipped", "no_image"))
    thousandths = JsonBoxes(space=Space.RELATIVE_1000)
    (point,) = parse('{"point_2d": [1, 4000]}', view=None, style=thousandths).points
    assert point == Point(label="", place=(1, 1000), space=Space.RELATIVE_1000, flags=("clipped", "no_image"))


def test_special_tokens_are_passed_over():
    reader = STYLE.reader(VIEW, 2)
    for segment in (
        TextSegment(text='[{"bbox_2d"'),
        SpecialSegment(name="<|x|>"),
        TextSegment(text=": [1, 2, 3, 4]}]"),
    ):
        reader.take(segment)
    (box,) = reader.finish().boxes
    assert (box.corners, box.image) == ((2, 4, 6, 8), 2)


def test_what_is_written_is_the_published_form():
    boxes = [Box(label=name, corners=(10, 20, 30, 40), space=Space.PROCESSED_PX) for name in ("a dog", "")]
    (segment,) = STYLE.render(boxes, [VIEW])
    assert segment.text == (
        '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "a dog"},\n\t{"bbox_2d": [10, 20, 30, 40]}\n]\n```'
    )
    assert json.loads(segment.text.strip("`json\n"))[0] == {"bbox_2d": [10, 20, 30, 40], "label": "a dog"}
    assert STYLE.render([], [VIEW]) == []


def test_boxes_that_have_no_place_are_refused():
    with pytest.raises(InputError, match="image 1, but the conversation has 1"):
        STYLE.render([Box(label="", corners=(0, 0, 1, 1), space=Space.ORIGINAL_PX, image=1)], [VIEW])
    with pytest.raises(InputError, match="passes the edge"):
        STYLE.render([Box(label="", corners=(0, 0, 1001, 1), space=Space.ORIGINAL_PX)], [VIEW])


@pytest.mark.parametrize(
    "piece",
    ["{", '{"', "[", "```", " ", '"label": "', ONE, '{"bbox_2d": [1, 2, 3, 4] ', "``", "[{", '{"a": ', "{'bbox_2d':["],
)
def test_long_answers_take_linear_time(piece):
    def seconds(count):
        began = time.process_time()
        parse('[{"a": ' + piece * count)
        parse(f"[{ONE}" + piece * count)
        return time.process_time() - began

    seconds(100)
    assert seconds(2500) < 15  # quadratic work on this length takes minutes
