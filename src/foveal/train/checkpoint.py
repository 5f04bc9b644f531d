"""Checkpoints of a stage: one safetensors file, written whole or not at all."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveal.core.errors import WeightsError


def write_checkpoint(path: Path, tensors: dict[str, Tensor], *, step: int, stage: str) -> None:
    """Writes beside `path`, flushes to disk, then renames: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, {"step": str(step), "stage": stage})
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_checkpoint(path: Path, *, stage: str | None = None) -> tuple[dict[str, Tensor], int]:
    """Tensors and the number of steps done. Raises `WeightsError` for a damaged file or another stage's."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is no readable checkpoint: {error}. Delete it to begin the stage anew.") from None
    if stage is not None and notes.get("stage") != stage:
        raise WeightsError(f"{path} is of stage {notes.get('stage')!r}, expected {stage!r}.")
    return tensors, int(notes.get("step", 0))


def append_json(path: Path, row: dict[str, object]) -> None:
    """Adds one line to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
