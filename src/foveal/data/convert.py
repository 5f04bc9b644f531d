"""`convert`: a data set in another format, without loss.

The target appears whole or not at all, and nothing that exists is written over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.core.errors import InputError, neighbours
from foveal.core.media import MediaBudget
from foveal.data.formats import FORMATS, format_named
from foveal.data.rows import DataError
from foveal.data.sample import Sample
from foveal.data.sinks import open_sink
from foveal.data.source import Source
from foveal.data.writing import Format, Writing
from foveal.processing.media import image_size

CONTAINERS = ("json", "jsonl", "parquet", "webdataset")
TARGETS = (*(f.name for f in FORMATS), "parquet", "webdataset")
"""What a set can be converted to; "parquet" and "webdataset" hold ms-swift's records, with the media inside."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was done: samples and media written, and where."""

    target: Path
    format: str
    container: str
    samples: int
    media: int


def convert(
    source: Source,
    target: str | Path,
    *,
    to: str,
    container: str | None = None,
    rounding: bool = False,
    copy: bool = False,
    budget: MediaBudget | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes all samples of `source` in format `to`.

    Args:
        source: see `foveal.data.formats.open_source`.
        target: file to write; it must not exist.
        to: one of `TARGETS`.
        container: "json", "jsonl", "parquet" or "webdataset"; by default what the format usually comes in.
        rounding: boxes may be rounded to whole thousandths where the format has only these.
        copy: copy media beside a JSON target. Else it names them where they are; media that came as bytes are
            always written out.
        progress: is called with (samples done, samples).

    Raises:
        DataError: a sample holds what the format cannot carry, or a medium is missing.
    """
    form, kind = kind_of(to, container)
    return write(
        (source[i] for i in range(len(source))),
        len(source),
        Path(target),
        form=form,
        container=kind,
        rounding=rounding,
        copy=copy,
        budget=budget,
        progress=progress,
    )


def kind_of(to: str, container: str | None) -> tuple[Format, str]:
    """The format of records and the container that `to` means."""
    if to not in TARGETS:
        raise InputError(f"unknown format {to!r}; {neighbours(to, TARGETS)}")
    if container is not None and container not in CONTAINERS:
        raise InputError(f"unknown container {container!r}; {neighbours(container, CONTAINERS)}")
    if to in CONTAINERS:
        if container not in (None, to):
            raise InputError(f"{to} is a container itself; drop the container {container!r}.")
        return format_named("swift"), to
    form = format_named(to)
    return form, container or form.container


def write(
    samples: Iterator[Sample],
    count: int,
    target: Path,
    *,
    form: Format,
    container: str,
    rounding: bool = False,
    copy: bool = False,
    budget: MediaBudget | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes samples that come one by one; see `convert`."""
    bounds = budget or MediaBudget()
    written = 0
    with open_sink(target, container, copy=copy, budget=bounds) as sink:
        for number, sample in enumerate(samples):

            def size(part: Any, sample: Sample = sample) -> tuple[int, int]:
                with _named(sample):
                    return image_size(part["image"], budget=bounds)[0]

            def store(medium: Any, sample: Sample = sample) -> Any:
                with _named(sample):
                    return sink.store(medium)

            out = Writing(sample=sample, form=form.name, store=store, size=size, rounding=rounding)
            sink.add(out.extras(form.write(sample, out)))
            written = number + 1
            if progress is not None:
                progress(written, count)
    return Converted(target=target, format=form.name, container=container, samples=written, media=sink.media)


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Errors of media say whose they are."""
    try:
        yield
    except DataError:
        raise
    except InputError as error:
        raise DataError(f"{sample}: {error}", "media") from None
