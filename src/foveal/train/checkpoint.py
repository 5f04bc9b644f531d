"""Checkpoints of a stage: safetensors files, each written whole or not at all; and lines of JSON."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.core.errors import WeightsError

log = logging.getLogger(__name__)

Rows = Callable[[str, Sequence[int]], slice | None]
"""A tensor's name and shape -> which of its rows are read; None for all."""


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], *, step: int, stage: str, notes: Mapping[str, str] | None = None
) -> None:
    """Writes beside `path`, flushes to disk, then renames: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    own = {"step": str(step), "stage": stage, **(notes or {})}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, own)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _flush_folder(path.parent)


def read_checkpoint(path: Path, *, stage: str | None = None, rows: Rows | None = None) -> tuple[dict[str, Tensor], int]:
    """Tensors and the number of steps done. Raises `WeightsError` for a damaged file or another stage's."""
    tensors, notes = read_noted(path, rows)
    if stage is not None and notes.get("stage") != stage:
        raise WeightsError(f"{path} is of stage {notes.get('stage')!r}, expected {stage!r}.")
    return tensors, int(notes.get("step", 0))


def read_noted(path: Path, rows: Rows | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (or the `rows` of them) and notes of a checkpoint. Raises `WeightsError` for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            found = {}
            for key in file.keys():  # noqa: SIM118
                part = None if rows is None else rows(key, file.get_slice(key).get_shape())
                found[key] = file.get_tensor(key) if part is None else file.get_slice(key)[part]
            return found, notes
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is no readable checkpoint: {error}. Delete it to begin the stage anew.") from None


class Checkpoints:
    """The checkpoints of one stage in one folder, `step-00000250.safetensors` and so on.

    Args:
        folder: of the stage.
        stage: its name.
        keep_last: newest checkpoints to keep.
        keep_every: keep those of multiples of this many steps as well; 0 for none.
    """

    _NAME = re.compile(r"step-(\d{8})\.safetensors")

    def __init__(self, folder: Path, stage: str, *, keep_last: int = 2, keep_every: int = 0) -> None:
        self.folder, self.stage, self.keep_last, self.keep_every = folder, stage, keep_last, keep_every

    def steps(self) -> list[int]:
        """Steps of all checkpoints, oldest first."""
        names = [self._NAME.fullmatch(path.name) for path in self.folder.glob("step-*.safetensors")]
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def newest(self, rows: Rows | None = None) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors (or `rows` of them) and notes of the newest checkpoint; damaged ones are passed over."""
        for step in reversed(self.steps()):
            try:
                tensors, notes = read_noted(self.path(step), rows)
            except WeightsError as error:
                log.warning("%s The one before is taken.", error)
                continue
            if notes.get("stage") != self.stage:
                raise WeightsError(f"{self.path(step)} is of stage {notes.get('stage')!r}, expected {self.stage!r}.")
            return tensors, notes
        return None

    def write(self, tensors: dict[str, Tensor], *, step: int, notes: Mapping[str, str] | None = None) -> Path:
        """Writes a checkpoint, then removes those that are not to be kept. Returns its path."""
        path = self.path(step)
        write_checkpoint(path, tensors, step=step, stage=self.stage, notes=notes)
        for old in self.steps()[: -self.keep_last]:
            if not (self.keep_every and old % self.keep_every == 0):
                self.path(old).unlink(missing_ok=True)
        return path


def append_json(path: Path, row: Mapping[str, object]) -> None:
    """Adds one line to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a JSONL file, without a last one that was cut short; empty where there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: a broken line is left out.", path)
    return rows


def cut_rows(path: Path, step: int) -> None:
    """Removes the rows after `step`, which are about to be written again."""
    rows = read_rows(path)
    kept = [row for row in rows if int(str(row.get("step", 0))) <= step]
    if not rows and not path.exists():
        return
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    part.replace(path)


def _flush_folder(folder: Path) -> None:
    """So that the new name itself is on disk, where folders can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        log.debug("%s cannot be flushed.", folder)
    finally:
        os.close(handle)
