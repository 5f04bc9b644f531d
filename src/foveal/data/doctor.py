"""The doctor of data sets: what is wrong with each sample, and with the set as a whole.

Every sample is read, its media are opened, its boxes are held against its pictures (see `checks`). Pictures are
compared by fingerprints (see `prints`), within the set and with another one.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeAlias, TypeVar

from foveal.core.errors import FovealError, InputError
from foveal.data.checks import ERROR, KINDS, Checked, Checks, Finding, Settings
from foveal.data.formats import FileSource
from foveal.data.prints import NearIndex, Print, near, text_print
from foveal.data.sample import Sample
from foveal.data.source import Chained, Source

_FEW = 5  # boxes from which a set-wide suspicion is told

Progress: TypeAlias = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(kw_only=True)
class Report:
    """What was found in a set."""

    name: str
    samples: int = 0
    media: int = 0
    boxes: int = 0
    longest_tokens: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Findings by kind, in the order of `KINDS`."""
        found = Counter(f.kind for f in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def errors(self) -> int:
        return sum(f.severity == ERROR for f in self.findings)


def files_of(source: Source) -> list[FileSource]:
    """The files that a source consists of."""
    if isinstance(source, Chained):
        return [file for part in source.parts for file in files_of(part)]
    if isinstance(source, FileSource):
        return [source]
    raise InputError(f"{source.name} is no data set in files; open it with open_source().")


class Examination:
    """Looks at one sample after the other; `each` gives them in order, `report` is complete after the last."""

    def __init__(self, source: Source, settings: Settings, against: Source | None = None) -> None:
        self.settings = settings
        self.files = [_lenient(file) for file in files_of(source)]
        self.checks = Checks(settings)
        self.report = Report(name=source.name)
        self._ids: dict[str, str] = {}
        self._near = NearIndex()
        self._texts: dict[tuple[int, bytes], list[tuple[list[Print], str]]] = {}
        self._alone: dict[bytes, str] = {}
        self._other: tuple[NearIndex, dict[int, str], dict[bytes, str]] | None = None
        self._spaces: Counter[str] = Counter()
        self._worded = 0  # samples with boxes as words
        self.length = sum(len(f) for f in self.files)
        self._against = against

    def each(self, progress: Progress | None = None) -> Iterator[Checked]:
        """Every sample, examined; threads work ahead, the order stays."""
        jobs = [(file, i) for file in self.files for i in range(len(file))]
        if self._against is not None:
            self._other = self._read_other(self._against)
        for done, checked in enumerate(self._ahead(self.checks.check, jobs), start=1):
            self._in_set(checked)
            self.report.samples += 1
            self.report.findings += checked.findings
            self._spaces += checked.spaces
            if checked.tokens is not None:
                self.report.longest_tokens = max(self.report.longest_tokens or 0, checked.tokens)
            if checked.sample is not None:
                self._worded += '"bbox_2d"' in checked.sample.text
                self.report.media += len(checked.sample.media)
                self.report.boxes += len(checked.sample.boxes)
            if progress is not None:
                progress(done, self.length)
            yield checked
        self._suspect()

    def _ahead(self, work: Callable[[FileSource, int], T], jobs: Sequence[tuple[FileSource, int]]) -> Iterator[T]:
        """`work` on every job in threads, results in order, at most a few ahead of whoever takes them."""
        workers = self.settings.workers or min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Future[T]] = deque()
            rest = iter(jobs)
            while True:
                waiting += [pool.submit(work, *job) for job in islice(rest, 4 * workers - len(waiting))]
                if not waiting:
                    return
                yield waiting.popleft().result()

    # The set as a whole. Runs in order.

    def _in_set(self, made: Checked) -> None:
        sample = made.sample
        if sample is None:
            return
        if sample.id in self._ids:
            made.found("id", f"its id is that of {self._ids[sample.id]}.")
            new = next(f"{sample.id}-{k}" for k in range(2, 10**9) if f"{sample.id}-{k}" not in self._ids)
            made.sample = sample = replace(sample, id=new)
        self._ids[sample.id] = sample.where or sample.id
        if made.dropped:
            return
        text = text_print(sample.text, made.marked)
        place = f"{sample.id!r} ({sample.where})"
        if self._other is not None and self._leaks(made, sample, *self._other):
            return
        if not made.pictures:
            before = self._alone.setdefault(text, place)
            if not sample.media and before != place:
                made.found("duplicate", f"its words are those of {before}.", drop=True)
            return
        for number in self._near.like(made.pictures[0]):
            for prints, before in self._texts.get((number, text), ()):
                same = prints == made.pictures
                if same or (len(prints) == len(made.pictures) and all(map(near, prints, made.pictures))):
                    what = ("duplicate", "") if same else ("near duplicate", "nearly ")
                    made.found(what[0], f"its pictures and words are {what[1]}those of {before}.", drop=True)
                    return
        key = (self._near.add(made.pictures[0]), text)
        self._texts.setdefault(key, []).append((made.pictures, place))

    def _read_other(self, source: Source) -> tuple[NearIndex, dict[int, str], dict[bytes, str]]:
        """Pictures and words of the other set. Samples that cannot be read are its own doctor's matter."""
        index, owners, words = NearIndex(), dict[int, str](), dict[bytes, str]()

        def look(file: FileSource, number: int) -> tuple[Sample, list[Print]] | None:
            try:
                sample = file[number]
                return sample, [self.checks.picture(m["image"])[2] for m in sample.media if m["type"] == "image"]
            except FovealError:
                return None

        jobs = [(file, i) for file in map(_lenient, files_of(source)) for i in range(len(file))]
        for found in self._ahead(look, jobs):
            if found is None:
                continue
            sample, prints = found
            place = f"{sample.id!r} of {source.name!r} ({sample.where})"
            for value in prints:
                owners.setdefault(index.add(value), place)
            if not sample.media:
                words.setdefault(text_print(sample.text), place)
        return index, owners, words

    def _leaks(
        self, made: Checked, sample: Sample, index: NearIndex, owners: dict[int, str], words: dict[bytes, str]
    ) -> bool:
        for value in made.pictures:
            for number in index.like(value)[:1]:
                nearly = "" if index.prints[number] == value else "nearly "
                made.found("leak", f"a picture is {nearly}that of {owners[number]}.", drop=True)
                return True
        place = None if sample.media else words.get(text_print(sample.text))
        if place is not None:
            made.found("leak", f"its words are those of {place}.", drop=True)
        return place is not None

    def _suspect(self) -> None:
        """Boxes of the whole set that look as if they counted something else than they say."""
        boxes = sum(self._spaces.values())
        advice = "State the space when the set is read (--boxes)."
        for guess, words in (
            ("unit", "lie in 0 to 1: are they shares of width and height?"),
            ("thousandths", "never pass 1000, though pictures are larger or end before: are they thousandths?"),
            ("pixels", "pass 1000 although they are said to be thousandths: are they pixels?"),
        ):
            count, wide = self._spaces[guess], self._spaces["beyond"]
            many = count == boxes if guess == "unit" else count > 0 and not (guess == "thousandths" and wide)
            if count >= _FEW and many:
                message = f"{count} boxes {words} {advice}"
                self.report.findings.append(
                    Finding(kind="wrong space suspected", sample="", where=self.report.name, message=message)
                )
        if self._worded:
            message = f"{self._worded} samples hold bbox_2d as words. {advice}"
            self.report.findings.append(
                Finding(kind="boxes are words", sample="", where=self.report.name, message=message)
            )


def _lenient(file: FileSource) -> FileSource:
    """The same file, read so that unknown keys are carried along and what can be repaired is."""
    return FileSource(file.name, file.rows, file.form, replace(file.settings, keep=frozenset("*"), mend=True))
