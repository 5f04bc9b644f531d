import pytest

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import InputError
from foveal.processing.grounding import AnswerReader, BoxStyle, parse
from foveal.processing.no_boxes import NoBoxes
from foveal.processing.segments import SpecialSegment, TextSegment

VIEW = ImageView(original=(10, 10), processed=(10, 10))


def test_boxes_are_refused_by_name():
    style = NoBoxes()
    assert isinstance(style, BoxStyle)
    boxes = [Box(label=name, corners=(0, 0, 1, 1), space=Space.ORIGINAL_PX) for name in ("cat", "")]
    with pytest.raises(InputError, match=r"2 boxes \('cat'\)"):
        style.render(boxes, [VIEW])
    with pytest.raises(InputError, match=r"1 boxes \(without labels\)"):
        style.render(boxes[1:], [VIEW])


def test_an_answer_is_words():
    assert isinstance(NoBoxes().reader(VIEW, 0), AnswerReader)
    segments = [TextSegment(text="(1,2),"), SpecialSegment(name="<end>"), TextSegment(text="(3,4)")]
    found = parse(segments, NoBoxes(), VIEW, 0)
    assert (found.text, found.boxes, found.parts) == ("(1,2),(3,4)", (), ("(1,2),(3,4)",))
    assert parse([], NoBoxes(), None, 0).parts == ()
