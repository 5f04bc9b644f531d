import numpy as np
import pytest
from PIL import Image, ImageChops

from foveal.core.box import Box, ImageView, Space
from foveal.processing import draw as drawing
from foveal.processing.draw import colour_of, draw

GREY = Image.new("RGB", (320, 240), (128, 128, 128))


def box(label, *corners, space=Space.ORIGINAL_PX):
    return Box(label=label, corners=corners, space=space)


def changed(before, after):
    """(left, top, right, bottom) of what differs."""
    return ImageChops.difference(before, after).getbbox()


def luminance(colour):
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_box_is_drawn_on_a_copy():
    before = GREY.copy()
    after = draw(GREY, [box("", 50, 60, 150, 160)])
    assert GREY.tobytes() == before.tobytes()
    assert after.size == GREY.size
    left, top, right, bottom = changed(GREY, after)
    assert abs(left - 50) <= 3 and abs(top - 60) <= 3 and abs(right - 150) <= 3 and abs(bottom - 160) <= 3
    assert after.getpixel((50, 100)) == colour_of("")
    assert after.getpixel((100, 110)) == (128, 128, 128), "the inside stays visible"


def test_boxes_of_other_spaces_are_converted():
    view = ImageView(original=(320, 240), processed=(56, 56))
    relative = box("", 250, 250, 500, 500, space=Space.RELATIVE_1000)
    same = box("", 80, 60, 160, 120)
    assert draw(GREY, [relative], view=view).tobytes() == draw(GREY, [same]).tobytes()


@pytest.mark.parametrize("corners", [(100, 100, 200, 150), (0, 0, 60, 40), (290, 0, 320, 20), (0, 220, 40, 240)])
def test_a_label_lies_on_its_own_ground_within_the_picture(corners):
    bare, labelled = draw(GREY, [box("", *corners)]), draw(GREY, [box("cat", *corners)])
    colour = colour_of("cat")
    pixels = np.array(labelled)
    assert (pixels == colour).all(-1).sum() > (np.array(bare) == colour_of("")).all(-1).sum()
    dark, light = sorted([luminance(colour), luminance((0, 0, 0) if luminance(colour) > 0.179 else (255, 255, 255))])
    assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG AA for text"


@pytest.mark.parametrize("label", ["cat", "x" * 300, "a\nb\tc", "<|box_end|>", "红色的苹果", "🎉", "é…", " "])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (20, 12), (400, 300)])
def test_any_label_fits_into_any_picture(label, size):
    picture = Image.new("RGB", size, "white")
    assert draw(picture, [box(label, 0, 0, *size), box(label, 0, 0, 0, 0)]).size == size


def test_labels_of_neighbours_do_not_cover_each_other():
    boxes = [box("first", 100, 100, 200, 200), box("second", 102, 100, 202, 200)]
    grounds = []
    write = drawing._write

    def note(*arguments):
        grounds.append(write(*arguments))
        return grounds[-1]

    drawing._write = note
    try:
        draw(GREY, boxes)
    finally:
        drawing._write = write
    (a, b) = grounds
    assert not drawing._overlap(a, b)


def test_letters_that_no_font_has_are_written_as_escapes(monkeypatch):
    monkeypatch.setattr(drawing, "_system_fonts", tuple)
    words, font = drawing._legible("猫 é…", 14)
    assert words == "\\u732b \\xe9…"
    assert font.getlength(words) > 0
    assert changed(GREY, draw(GREY, [box("猫", 50, 50, 200, 200)])) is not None


def test_a_font_of_the_system_is_taken_where_it_has_more_letters(monkeypatch):
    truetype, other = drawing.ImageFont.truetype, drawing.ImageFont.load_default(15)
    monkeypatch.setattr(drawing, "_system_fonts", lambda: ("some.ttf",))
    monkeypatch.setattr(
        drawing.ImageFont, "truetype", lambda path, *a, **k: other if path == "some.ttf" else truetype(path, *a, **k)
    )
    monkeypatch.setattr(drawing, "_lacking", lambda font, words: {"é"} if font is other else {"猫", "é"})
    words, font = drawing._legible("猫é", 14)
    assert words == "猫\\xe9"
    assert font is other


def test_endless_labels_are_cut_at_once():
    import time

    began = time.process_time()
    draw(GREY, [box("word " * 20_000, 10, 50, 100, 100)])
    assert time.process_time() - began < 15


def test_every_colour_of_labels_is_readable():
    for colour in drawing._COLOURS:
        dark, light = sorted([luminance(colour), luminance(drawing._contrast(colour))])
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_pictures_of_other_modes_become_rgb():
    assert draw(Image.new("L", (40, 40)), [box("a", 1, 1, 9, 9)]).mode == "RGB"
