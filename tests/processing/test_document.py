import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.core.box import ImageView, Space
from foveal.processing.document import read_document

VIEW = ImageView(original=(1000, 500), processed=(500, 250))

PAPER = """```html
<html><body>
<h1 data-bbox="20 10 300 30">On   Foxes &amp; Geese</h1>
<p data-bbox="20 40 480 60">First <b>bold</b> words.</p>
<style>table1{border: 1px}</style>
<table data-bbox="20 70 480 120" class="table1">
<tr><th>name</th><th>age</th></tr>
<tr><td>Reynard</td><td>3 <sup>1/2</sup></td></tr>
</table>
<div class="formula" data-bbox="20 130 100 150"><img data-bbox="20 130 100 150" /><div>E = mc^2</div></div>
<div class="image caption" data-bbox="20 160 200 240"><img data-bbox="20 160 200 230"/><p>A fox.</p></div>
<div class="chart" data-bbox="210 160 400 240"><img data-bbox="210 160 400 240"/>
<table><tr><td>1</td></tr></table></div>
<div class="chemical formula" format="smile" data-bbox="1 2 3 4"><img/><div>CCO</div></div>
<div class="music sheet" format="abc notation" data-bbox="1 2 3 4"><div>X:1 K:C</div></div>
</body></html>
```"""

LIST = (
    '<ul data-bbox="[0, 0, 10, 10]"><li data-bbox="0,0,5,5">one<li>two<ul><li>inner</ul><li>three</ul>'
    '<p data-bbox="0 0 4 4">a<p data-bbox="4 4 8 8">b<pre>x &lt; y</pre><a href="u">link</a>'
)


def outline(document):
    def of(element):
        return (element.kind, [of(c) if not isinstance(c, str) else " ".join(c.split()) for c in element.children])

    return [of(c) if not isinstance(c, str) else c for c in document.children]


def test_a_paper():
    page = read_document(PAPER, VIEW, image=2)
    assert not page.broken
    assert [c.kind for c in page.children] == [
        "heading", "paragraph", "style", "table", "formula", "image caption", "chart", "chemical formula",
        "music sheet",
    ]  # fmt: skip
    heading, words, _, table, formula, *_, chemistry, music = page.children
    assert heading.text == "On Foxes & Geese"
    assert heading.box.corners == (40, 20, 600, 60)
    assert (heading.box.space, heading.box.image, heading.box.label) == (Space.ORIGINAL_PX, 2, "heading")
    assert words.text == "First bold words."
    assert table.rows == (("name", "age"), ("Reynard", "3 1/2"))
    assert table.attributes == {"class": "table1"}
    assert [e.kind for e in formula.walk()] == ["formula", "picture", "div"]
    assert formula.text == "E = mc^2"
    assert (chemistry.attributes["format"], chemistry.text) == ("smile", "CCO")
    assert (music.attributes["format"], music.text) == ("abc notation", "X:1 K:C")
    assert len(page.boxes) == 11
    assert page.text.splitlines()[:2] == ["On Foxes & Geese", "First bold words."]
    assert "border" not in page.text


def test_tags_that_html_lets_one_leave_out():
    page = read_document(LIST, VIEW)
    assert not page.broken
    assert outline(page) == [
        ("list", [("item", ["one"]), ("item", ["two", ("list", [("item", ["inner"])])]), ("item", ["three"])]),
        ("paragraph", ["a"]), ("paragraph", ["b"]), ("code", ["x < y"]), ("link", ["link"]),
    ]  # fmt: skip
    assert [b.corners for b in page.boxes] == [(0, 0, 20, 20), (0, 0, 10, 10), (0, 0, 8, 8), (8, 8, 16, 16)]
    assert all(not e.flags for e in page.walk())


def test_rows_and_cells_end_by_themselves_and_inner_tables_stay_in_their_cell():
    page = read_document("<table><tr><td>a<td>b<table><tr><td>c</table><tr><td>d</table>", VIEW)
    (table,) = page.children
    assert table.rows == (("a", "b c"), ("d",))
    assert table.children[0].children[1].children[1].rows == (("c",),)


def test_words_only():
    page = read_document("no <html> at all, 1 < 2 & 3", VIEW)
    assert page.text.split() == ["no", "at", "all,", "1", "<", "2", "&", "3"]
    assert page.boxes == ()


@pytest.mark.parametrize(
    ("answer", "text", "boxes", "flags", "broken"),
    [
        ('<div class="chart" data-bbox="1 2 3 4"><p>cut o', "cut o", 1, ["unclosed"], []),
        ('<h2 data-bbox="1 2 3 4">a</h2></div>b', "a\nb", 1, [], ["</div>"]),
        ("<h1>a<h2>b</h1>c", "a b\nc", 0, ["unclosed"], []),
        ('<p data-bbox="1 2 3">a', "a", 0, [], ['data-bbox="1 2 3"']),
        ('<p data-bbox="left top right low">a', "a", 0, [], ['data-bbox="left top right low"']),
        ('<p data-bbox="">a', "a", 0, [], ['data-bbox=""']),
        ('<p data-bbox="1 2 3 99999999999">a', "a", 0, [], ['data-bbox="1 2 3 99999999999"']),
        ('<p>a</p><p data-bbox="1 2', "a", 0, [], ['<p data-bbox="1 2']),
        ("<p>a</p><!-- never closed", "a", 0, [], ["<!-- never closed"]),
        ("<p>a", "a", 0, [], []),
        ("```html\n<p>a</p>", "a", 0, [], []),
        ("", "", 0, [], []),
    ],
)
def test_damage_is_mended_and_named(answer, text, boxes, flags, broken):
    page = read_document(answer, VIEW)
    assert page.text == text
    assert len(page.boxes) == boxes
    assert [f for e in page.walk() for f in e.flags] == flags
    assert list(page.broken) == broken


def test_boxes_are_mended_as_elsewhere():
    page = read_document('<p data-bbox="30 40 10 2000">a</p><p data-bbox="-5 0 5 5">b</p>', VIEW)
    assert [(b.corners, b.flags) for b in page.boxes] == [
        ((20, 80, 60, 500), ("swapped", "clipped")), ((0, 0, 10, 10), ("clipped",)),
    ]  # fmt: skip


def test_without_an_image_boxes_keep_the_models_space():
    page = read_document('<p data-bbox="30 40 100 2000">a</p>', None)
    assert page.boxes[0].corners == (30, 40, 100, 2000)
    assert page.boxes[0].space is Space.PROCESSED_PX
    other = read_document('<p data-bbox="500 500 1000 1000">a</p>', VIEW, space=Space.RELATIVE_1000)
    assert other.boxes[0].corners == (500, 250, 1000, 500)


def test_endless_nesting_is_bounded():
    page = read_document("<div>" * 20_000 + "deep", VIEW)
    assert page.text == "deep"
    assert len(page.broken) > 19_000
    assert len(json.dumps(outline(page))) < 100_000


PIECES = ["<p>", "</p>", '<div class="chart" data-bbox="1 2 3 4">', "</div>", "<table>", "<tr>", "<td>", "</table>",
          "<li>", "<ul>",
          "</ul>", "word ", "<", ">", '"', "<img/>", "&amp;", "</", "<p data-bbox=", "```", "<!--"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=30))
@settings(max_examples=400)
def test_no_answer_makes_reading_fail(pieces):
    page = read_document("".join(pieces), VIEW)
    for box in page.boxes:
        assert box.corners == (2, 4, 6, 8)
    if not {"<", "</", "<p data-bbox=", "<!--"} & set(pieces):  # which swallow what follows
        words = page.text.replace("\n", " ")
        assert words.count("word") == pieces.count("word ")
