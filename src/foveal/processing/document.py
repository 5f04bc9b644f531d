"""Documents as Qwen2.5-VL writes them ("QwenVL HTML"): HTML whose elements say where they stand on the page.

    <html><body>
    <h1 data-bbox="203 185 460 214">Title</h1>
    <p data-bbox="203 230 800 400">Words.</p>
    <div class="formula" data-bbox="..."><img data-bbox="..."/><div>E = mc^2</div></div>
    </body></html>

Source: Qwen2.5-VL paper, section 2.2.1 (document omni-parsing data). Reading never fails: what is damaged is mended
as browsers do it, and named.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

from foveal.core.box import Box, ImageView, Space

BOX = "data-bbox"
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
_FRAME = frozenset(("html", "head", "body"))
_KINDS = {f"h{n}": "heading" for n in range(1, 7)} | {
    "p": "paragraph", "table": "table", "ul": "list", "ol": "list", "li": "item", "tr": "row", "td": "cell",
    "th": "cell", "img": "picture", "style": "style", "code": "code", "pre": "code", "a": "link",
}  # fmt: skip
_CLASSES = (
    "chart", "chemical formula", "formula", "image caption", "image ocr", "music sheet", "image", "table", "code",
)  # fmt: skip
"""Kinds that a class names, the more exact ones first."""
_ENDED_BY = {
    "p": frozenset("p div table ul ol h1 h2 h3 h4 h5 h6 pre".split()), "li": frozenset(("li",)),
    "td": frozenset(("td", "th", "tr")), "th": frozenset(("td", "th", "tr")), "tr": frozenset(("tr",)),
}  # fmt: skip
"""Elements whose closing tag may be left out -> the opening tags that end them."""
_BARRIERS = {
    "li": frozenset(("ul", "ol")), "td": frozenset(("table",)), "th": frozenset(("table",)),
    "tr": frozenset(("table",)), "p": frozenset(("td", "th", "li", "div", "table")),
}  # fmt: skip
"""Elements within which an outer one of that kind is not ended."""
_DEEPEST = 200
_NUMBERS = re.compile(r"[\s,\[(]*(-?\d{1,6}(?:\.\d{1,9})?)" + r"[\s,]+(-?\d{1,6}(?:\.\d{1,9})?)" * 3 + r"[\s,\])]*")
_CUT_TAG = re.compile(r"<(?:/?[a-zA-Z][^<>]*|/)?\Z")
_FENCE = re.compile(r"\s*```(?:html)?[ \t]*\n?(.*?)(?:```\s*)?\Z", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element of a document.

    Attributes:
        tag: its name in HTML, e.g. "p".
        kind: what it is: "heading", "paragraph", "table", "chart", "formula", "chemical formula", "music sheet",
            "image", "image caption", "image ocr", "picture", "list", "item", "row", "cell", "code", "link", "style";
            the tag's name for anything else.
        box: where it stands, in `Space.ORIGINAL_PX` (in the model's space if the image is not known); None if the
            document does not say. Its label is `kind`, its flags are those of `Box.mended`.
        attributes: all others, by name.
        children: elements and words in order.
        flags: "unclosed" (its end is missing).
    """

    tag: str
    kind: str
    box: Box | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: "tuple[Element | str, ...]" = ()
    flags: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All its words, white space reduced to single spaces; styles are no words."""
        return " ".join(" ".join(_words(self)).split())

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The cells' words of a table, row by row; those of inner tables belong to their cells."""
        return tuple(
            tuple(cell.text for cell in row.children if isinstance(cell, Element) and cell.kind == "cell")
            for row in _rows(self)
        )

    def walk(self) -> "Iterator[Element]":
        """This element and all within it, in reading order."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()


@dataclass(frozen=True, kw_only=True)
class Document:
    """A page: its outermost elements and words, and what was damaged.

    `broken` holds boxes that could not be read, closing tags without an opening one, and a tag that was cut off.
    """

    children: tuple[Element | str, ...]
    broken: tuple[str, ...] = ()

    def walk(self) -> Iterator[Element]:
        """All elements in reading order."""
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The places of all elements that have one."""
        return tuple(e.box for e in self.walk() if e.box is not None)

    @property
    def text(self) -> str:
        """All words, one line for each of the outermost elements."""
        shown = (child for child in self.children if isinstance(child, str) or child.kind != "style")
        lines = (child if isinstance(child, str) else child.text for child in shown)
        return "\n".join(line for line in (" ".join(line.split()) for line in lines) if line)


def read_document(
    answer: str, view: ImageView | None, *, image: int = 0, space: Space = Space.PROCESSED_PX
) -> Document:
    """Reads a model's answer as a document.

    Args:
        answer: HTML, with or without a code fence around it.
        view: sizes of the page's image, `Medium.view`; None if they are not known.
        image: number of the page among the media of the conversation.
        space: what the model's coordinates count.
    """
    fenced = _FENCE.match(answer)
    builder = _Builder(view, image, space)
    html = fenced[1] if fenced else answer
    cut = html.rfind("<!--") if html.rfind("<!--") > html.rfind("-->") else len(html)
    if tail := _CUT_TAG.search(html, html.rfind("<", 0, cut), cut) if cut == len(html) and "<" in html else None:
        cut = tail.start()
    builder.feed(html[:cut])
    page = builder.finished()
    return page if cut == len(html) else replace(page, broken=(*page.broken, html[cut:]))


@dataclass
class _Open:
    tag: str
    attributes: dict[str, str]
    box: Box | None
    children: list[Element | str] = field(default_factory=list)

    def closed(self, flags: tuple[str, ...] = ()) -> Element:
        return Element(
            tag=self.tag, kind=_kind(self.tag, self.attributes), box=self.box, attributes=self.attributes,
            children=tuple(self.children), flags=flags,
        )  # fmt: skip


class _Builder(HTMLParser):
    """Builds the tree from the parser's events; the stack holds what is open."""

    def __init__(self, view: ImageView | None, image: int, space: Space) -> None:
        super().__init__(convert_charrefs=True)
        self.view, self.image, self.space = view, image, space
        self.stack = [_Open("", {}, None)]
        self.broken: list[str] = []

    def finished(self) -> Document:
        self.close()
        while len(self.stack) > 1:
            self._end(() if self.stack[-1].tag in _ENDED_BY else ("unclosed",))
        return Document(children=tuple(self.stack[0].children), broken=tuple(self.broken))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _FRAME:
            return
        if len(self.stack) > _DEEPEST:
            self.broken.append(self.get_starttag_text() or tag)
            return
        self._end_implied(tag)
        attributes = {name: value or "" for name, value in attrs}
        opened = _Open(tag, attributes, self._box(tag, attributes))
        if tag in _VOID:
            self.stack[-1].children.append(opened.closed())
        else:
            self.stack.append(opened)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID and self.stack[-1].tag == tag:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        if tag in _FRAME or tag in _VOID:
            return
        if not any(o.tag == tag for o in self.stack[1:]):
            self.broken.append(f"</{tag}>")
            return
        while self.stack[-1].tag != tag:
            self._end(() if self.stack[-1].tag in _ENDED_BY else ("unclosed",))
        self._end()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.stack[-1].children.append(data)

    def _end(self, flags: tuple[str, ...] = ()) -> None:
        self.stack[-2].children.append(self.stack.pop().closed(flags))

    def _end_implied(self, tag: str) -> None:
        """Ends what `tag` ends without a closing tag, e.g. a cell and its row at the next row."""
        for depth in range(len(self.stack) - 1, 0, -1):
            inner = self.stack[depth].tag
            if tag in _ENDED_BY.get(inner, ()):
                while len(self.stack) > depth:
                    self._end(() if self.stack[-1].tag in _ENDED_BY else ("unclosed",))
            elif inner in _BARRIERS.get(tag, ()):
                return

    def _box(self, tag: str, attributes: dict[str, str]) -> Box | None:
        written = attributes.get(BOX)
        if written is None:
            return None
        found = _NUMBERS.fullmatch(written)
        if found is None:
            self.broken.append(f'{BOX}="{written}"')
            return None
        del attributes[BOX]
        x1, y1, x2, y2 = (float(n) for n in found.groups())
        view = self.view or ImageView(original=(10**6, 10**6), processed=(10**6, 10**6))
        box = Box.mended(_kind(tag, attributes), (x1, y1, x2, y2), self.space, view, self.image)
        return box if self.view is None else box.to(Space.ORIGINAL_PX, view)


def _kind(tag: str, attributes: Mapping[str, str]) -> str:
    named = " ".join(attributes.get("class", "").lower().split())
    if tag == "div":
        return next((kind for kind in _CLASSES if kind in named), "div")
    return _KINDS.get(tag, tag)


def _words(element: Element) -> Iterator[str]:
    for child in element.children:
        if isinstance(child, str):
            yield child
        elif child.kind != "style":
            yield from _words(child)


def _rows(element: Element) -> Iterator[Element]:
    for child in element.children:
        if isinstance(child, Element):
            if child.kind == "row":
                yield child
            elif child.kind != "table":
                yield from _rows(child)
