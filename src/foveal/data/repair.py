"""Repairs: a new set with what could be mended. The old one is never touched."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from foveal.core.media import MediaBudget
from foveal.data.checks import Checked
from foveal.data.convert import Converted, write
from foveal.data.doctor import Examination, Progress
from foveal.data.formats import format_named
from foveal.data.sample import MEDIA, Sample
from foveal.processing.media import open_image


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What was written, and which samples were left out: (id, why)."""

    written: Converted
    dropped: tuple[tuple[str, str], ...]


def repair(examination: Examination, target: Path, *, progress: Progress | None = None) -> Repaired:
    """Examines a set and writes what can be kept to `target`: JSON lines of messages, media copied beside them.

    Raises `InputError` if the target exists.
    """
    dropped: list[tuple[str, str]] = []
    budget = examination.settings.budget

    def kept() -> Iterator[Sample]:
        for checked in examination.each(progress):
            if checked.sample is None or checked.dropped:
                dropped.append((checked.findings[0].sample, checked.dropped))
            else:
                yield upright(checked, checked.sample, budget)

    written = write(
        kept(), examination.length, target, form=format_named("messages"), container="jsonl", copy=True, budget=budget
    )
    return Repaired(written=written, dropped=tuple(dropped))


def upright(checked: Checked, sample: Sample, budget: MediaBudget) -> Sample:
    """The sample with pictures that EXIF turns stored as they are seen (PNG, so that nothing is lost twice)."""
    if not checked.turned:
        return sample
    messages, number = [], -1
    for message in sample.messages:
        parts = []
        for part in message["content"]:
            number += part["type"] in MEDIA
            if part["type"] in MEDIA and number in checked.turned:
                file = BytesIO()
                open_image(part["image"], budget=budget).save(file, "PNG")
                parts.append({**part, "image": file.getvalue()})
            else:
                parts.append(part)
        messages.append({"role": message["role"], "content": parts})
    return replace(sample, messages=tuple(messages))
