"""What is wrong with one sample: its record, words, media and boxes, each by itself."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from foveal.core.box import Box, ImageView, Space
from foveal.core.errors import ContextError, FovealError
from foveal.core.media import MediaBudget
from foveal.data.boxes import replaced_boxes, turned_box
from foveal.data.formats import FileSource
from foveal.data.prints import Print, print_of
from foveal.data.reading import NOTES
from foveal.data.rows import DataError
from foveal.data.sample import Sample, messages_for
from foveal.processing.media import describe, image_size, open_bytes, open_image
from foveal.processing.processor import Processor

ERROR, WARNING, NOTE = "error", "warning", "note"

KINDS: dict[str, tuple[str, str]] = {
    "broken record": (ERROR, "drops it"),
    "unknown key": (WARNING, "carries the key along"),
    "role": (ERROR, "drops it"),
    "id": (WARNING, "gives a new id"),
    "placeholders": (ERROR, "puts missing places in front, drops other mismatches"),
    "no answer": (ERROR, "drops it"),
    "missing medium": (ERROR, "drops it"),
    "damaged medium": (ERROR, "drops it"),
    "turned by EXIF": (WARNING, "stores the picture upright"),
    "box of the unturned picture": (ERROR, "turns the box as the picture"),
    "box": (ERROR, "drops it"),
    "box inverted": (ERROR, "puts its corners in order"),
    "box past the edge": (ERROR, "clips it; drops the sample if nothing is left"),
    "box without area": (WARNING, "leaves it"),
    "wrong space suspected": (WARNING, "leaves it: read the set with the right space"),
    "boxes are words": (NOTE, "leaves it: read the set with --boxes"),
    "marks of a chat format": (WARNING, "leaves it: they are words to Foveal"),
    "too long": (ERROR, "drops it"),
    "not to be processed": (ERROR, "drops it"),
    "duplicate": (WARNING, "drops all but the first"),
    "near duplicate": (WARNING, "drops all but the first"),
    "leak": (ERROR, "drops it"),
}
"""What the doctor finds: how bad it is, and what `--fix` does about it."""

_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<image>",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong. `sample` is empty where it is the whole set."""

    kind: str
    sample: str
    where: str
    message: str

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]


@dataclass(kw_only=True)
class Checked:
    """One sample after its examination.

    Attributes:
        findings: what was found.
        sample: what it is after repairs; None if it cannot be read.
        dropped: why it cannot be kept; empty if it can.
        pictures: prints of its images in order.
        turned: media whose EXIF orientation is not 1.
        tokens: counted, if that was asked for.
        spaces: what the numbers of its boxes look like.
        marked: its boxes before repairs, for comparing samples.
    """

    number: int
    findings: list[Finding] = field(default_factory=list)
    sample: Sample | None = None
    dropped: str = ""
    pictures: list[Print] = field(default_factory=list)
    turned: frozenset[int] = frozenset()
    tokens: int | None = None
    spaces: Counter[str] = field(default_factory=Counter)
    marked: list[str] = field(default_factory=list)

    def found(self, kind: str, message: str, *, sample: str = "", where: str = "", drop: bool = False) -> None:
        """Notes a finding; with `drop`, the sample is not kept."""
        name, place = (self.sample.id, self.sample.where) if self.sample else (sample, where)
        self.findings.append(Finding(kind=kind, sample=name, where=place, message=message))
        if drop and not self.dropped:
            self.dropped = f"{kind}: {message}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How thoroughly. `processor` counts tokens, of which a sample may have `max_tokens`."""

    budget: MediaBudget = field(default_factory=MediaBudget)
    processor: Processor | None = None
    max_tokens: int | None = None
    workers: int = 0
    """Threads; 0 for as many as there are cores, at most 8."""


class Checks:
    """Looks at samples one at a time; may be used by several threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: dict[str, tuple[tuple[int, int], int, Print] | FovealError] = {}

    def check(self, file: FileSource, index: int) -> Checked:
        """Sample number `index` of a file, read so that what can be repaired is."""
        made = Checked(number=index)
        try:
            reading = file.reading(index)
        except DataError as error:
            made.found("broken record", str(error), sample=f"number {index}", where=file.rows.path.name, drop=True)
            return made
        try:
            sample = file.form.read(reading)
        except DataError as error:
            kind = error.kind if error.kind in KINDS else "broken record"
            made.found(kind, str(error), sample=reading.id, where=reading.row.where, drop=True)
            return made
        made.sample = sample
        made.marked = [f"{box.label}{box.points or box.corners}" for box in sample.boxes]
        for kind, message in reading.mended:
            made.found(kind, message)
        unknown = [k for k in reading.row.record if k in sample.extra and k not in (*NOTES, "extra")]
        if unknown:
            made.found("unknown key", f"it has the unknown key {unknown[0]!r}.")
        self._words(made, sample)
        sizes = self._media(made, sample)
        if sizes is not None:
            self._boxes(made, sample, sizes)
            if self.settings.processor is not None and not made.dropped:
                self._count(made, self.settings.processor)
        return made

    def _words(self, made: Checked, sample: Sample) -> None:
        answers = [m for m in sample.messages if m["role"] == "assistant"]
        said = [any(p["type"] != "text" or p["text"].strip() for p in m["content"]) for m in answers]
        if not all(said) or not answers:
            made.found("no answer", "an answer is empty." if answers else "nobody answers.", drop=True)
            return
        for mark in _MARKS:
            if mark in sample.text:
                made.found("marks of a chat format", f"its words hold {mark!r}.")
                return

    def _media(self, made: Checked, sample: Sample) -> list[tuple[tuple[int, int], int] | None] | None:
        """Upright size and EXIF orientation of each picture (None for videos); None if one cannot be had."""
        sizes: list[tuple[tuple[int, int], int] | None] = []
        turned = set()
        whole = True
        for number, part in enumerate(sample.media):
            medium = part[part["type"]]
            try:
                if part["type"] != "image":
                    self._video(medium)
                    sizes.append(None)
                    continue
                size, turn, shown = self.picture(medium)
            except FovealError as error:
                missing = "does not exist" in str(error) or "is a remote address" in str(error)
                made.found("missing medium" if missing else "damaged medium", str(error), drop=True)
                whole = False
                continue
            sizes.append((size, turn))
            made.pictures.append(shown)
            if turn != 1:
                turned.add(number)
                made.found("turned by EXIF", f"{describe(medium)} is stored with orientation {turn}.")
        made.turned = frozenset(turned)
        return sizes if whole else None

    def _video(self, medium: Any) -> None:
        """Frames are looked at; of a file it is only seen that it is there."""
        for frame in medium if isinstance(medium, list | tuple) else ():
            self.picture(frame)
        if not isinstance(medium, list | tuple):
            with open_bytes(medium, budget=self.settings.budget):
                pass

    def picture(self, medium: Any) -> tuple[tuple[int, int], int, Print]:
        """Size, orientation and print; a file that many samples share is opened once."""
        key = medium if isinstance(medium, str) else None
        known = self._known.get(key) if key is not None else None
        if known is None:
            try:
                size, turn = image_size(medium, budget=self.settings.budget)
                known = (size, turn, print_of(open_image(medium, budget=self.settings.budget)))
            except FovealError as error:
                known = type(error)(str(error))  # without the frames that the first holds
            if key is not None:
                self._known[key] = known
        if isinstance(known, FovealError):
            raise type(known)(str(known))
        return known

    def _boxes(self, made: Checked, sample: Sample, sizes: list[tuple[tuple[int, int], int] | None]) -> None:
        mended = []
        for box in sample.boxes:
            if not 0 <= box.image < len(sizes):
                made.found("box", f"box {box.label!r} lies in medium {box.image} of {len(sizes)}.", drop=True)
                return
            owner = sizes[box.image]
            mended.append(box if owner is None or box.space is Space.PROCESSED_PX else _held(made, box, *owner))
        if mended != sample.boxes:
            made.sample = replaced_boxes(sample, mended)

    def _count(self, made: Checked, processor: Processor) -> None:
        if made.sample is None:
            return
        messages, limit = messages_for(made.sample, processor.chat), self.settings.max_tokens
        try:
            tokens = len(processor.process(messages, budget=self.settings.budget, generate=False).tokens)
        except ContextError as error:
            made.found("too long", str(error), drop=True)
            return
        except FovealError as error:
            made.found("not to be processed", str(error), drop=True)
            return
        made.tokens = tokens
        if limit is not None and tokens > limit:
            made.found("too long", f"it has {tokens} tokens, {limit} are allowed.", drop=True)


def _held(made: Checked, box: Box, size: tuple[int, int], turn: int) -> Box:
    """A box held against its picture, upright of `size` and stored with orientation `turn`: as it is, or mended."""
    view = ImageView(original=size, processed=size)
    far, values = view.extent(box.space), box.points or box.corners
    made.spaces[_guess(box, size)] += 1
    if min(values) >= 0 and max(values[::2]) <= far[0] and max(values[1::2]) <= far[1]:
        if not box.area and not box.points:
            made.found("box without area", f"box {_shown(box)} holds nothing.")
        return box
    if turn >= 5 and box.space is Space.ORIGINAL_PX and min(values) >= 0:
        if max(values[::2]) <= far[1] and max(values[1::2]) <= far[0]:
            fits = f"fits the stored picture of {size[1]} x {size[0]}, not the upright one"
            made.found("box of the unturned picture", f"box {_shown(box)} {fits}.")
            return turned_box(box, turn, (size[1], size[0]))
    if box.points:
        inside = Box.quadrilateral(box.label, box.points, box.space, view, box.image)
    else:
        inside = Box.mended(box.label, box.corners, box.space, view, box.image)
    message = f"box {_shown(box)} in a picture that ends at {far[0]:g}, {far[1]:g}."
    made.found("box past the edge", message, drop="empty" in inside.flags)
    return replace(inside, flags=())


def _guess(box: Box, size: tuple[int, int]) -> str:
    """What the numbers of a box look like: "unit", "thousandths", "pixels", "beyond" (surely pixels), or "fine"."""
    values = box.points or box.corners
    if max(values) <= 1 and any(v != int(v) for v in values):
        return "unit"
    if box.space is Space.ORIGINAL_PX:
        if max(values) > 1000:
            return "beyond"
        fits = max(values[::2]) <= size[0] and max(values[1::2]) <= size[1]
        return "thousandths" if not fits or min(size) > 1200 else "fine"
    return "pixels" if max(values) > 1000 else "fine"


def _shown(box: Box) -> str:
    return f"{box.label!r} ({', '.join(f'{v:g}' for v in box.corners)})"
