"""`Writing`: one sample on its way into a record of another format. What cannot be carried is an error."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foveal.core.box import Box, ImageView, Space
from foveal.data.reading import NOTES, Reading
from foveal.data.rows import DataError
from foveal.data.sample import MEDIA, Sample


@dataclass(kw_only=True)
class Writing:
    """One sample's way out.

    Attributes:
        sample: what is written.
        form: the name of the format, for errors.
        store: turns a path or bytes into what the record says of it.
        size: (width, height) of a picture, upright.
        rounding: boxes may be rounded to what the format has.
    """

    sample: Sample
    form: str
    store: Callable[[Any], Any]
    size: Callable[[Any], tuple[int, int]]
    rounding: bool = False

    def refuse(self, what: str) -> DataError:
        return DataError(f"{self.sample}: {what}, which the format {self.form} cannot carry.", "cannot be carried")

    def medium(self, part: Mapping[str, Any]) -> Any:
        """What the record says of a medium; `DataError` for settings, which only `messages` carries."""
        settings = [key for key in part if key not in ("type", part["type"])]
        if settings:
            raise self.refuse(f"its {part['type']} has the setting {settings[0]!r}")
        return self.store(part[part["type"]])

    def counted(self, part: Mapping[str, Any]) -> int:
        """The number of a picture from 1; `DataError` for a video."""
        if part["type"] != "image":
            raise self.refuse("it has a video")
        return next(i for i, m in enumerate(self.sample.media, start=1) if m is part)

    def last_medium(self, box: Box) -> Box:
        """The box, if it lies in the last medium before it, which is all that marks in a text can say."""
        seen = 0
        for part in self.sample.parts:
            if part["type"] in MEDIA:
                seen += 1
            elif part["type"] == "box" and part["box"] is box and box.image != max(0, seen - 1):
                raise self.refuse(f"box {box.label!r} lies in medium {box.image}, which is not the last before it")
        return box

    def in_space(self, box: Box, space: Space) -> Box:
        """The box in units of `space`. Pixels of the resized picture depend on the model, so they are refused."""
        if box.space is space:
            return box
        if Space.PROCESSED_PX in (box.space, space):
            raise self.refuse("its boxes count pixels of the resized picture, whose size depends on the model")
        relative = {Space.RELATIVE_1000, Space.RELATIVE_999}
        size = (1, 1) if {box.space, space} <= relative else self.size(self.sample.media[box.image])
        return box.to(space, ImageView(original=size, processed=size))

    def whole(self, box: Box) -> list[int | float]:
        """Corners, or points, in whole thousandths."""
        found = self.in_space(box, Space.RELATIVE_1000)
        values = found.points or found.corners
        rounded = [round(v) for v in values]
        if not self.rounding and max(abs(v - r) for v, r in zip(values, rounded, strict=True)) > 1e-6:
            raise self.refuse(
                f"box {box.label!r} {tuple(box.corners)} is not in whole thousandths (allow rounding: --round)"
            )
        return list(rounded)

    @staticmethod
    def short(value: float) -> int | float:
        """Whole numbers without a point."""
        return int(value) if value == int(value) else value

    def extras(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with what the sample carries along: known notes beside, all else under 'extra'."""
        beside = {k: v for k, v in self.sample.extra.items() if k in NOTES and k not in record}
        inside = {k: v for k, v in self.sample.extra.items() if k not in beside}
        return record | beside | ({"extra": inside} if inside else {})


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format. `fits` says whether a record looks like it."""

    name: str
    help: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Reading], Sample]
    write: Callable[[Sample, Writing], dict[str, Any]]
    container: str = "jsonl"
