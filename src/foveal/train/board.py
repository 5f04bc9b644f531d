"""The curves of a run for TensorBoard, where that is installed (`pip install tensorboard`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Writes the figures of log rows as scalars of their names, those of evaluations as "evaluation/NAME".

    Args:
        folder: receives an events file; None for a process that writes none.
        step: where the run goes on; what an earlier file says of later steps counts no more.

    Without TensorBoard it does nothing: `log.jsonl` holds the same. Use it in a `with`, which ends the file.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row of the log, to the disk at once. Its "step" says where."""
        if self._writer is None:
            return
        figures = {name: value for name, value in row.items() if name != "step"}
        figures |= {f"evaluation/{name}": value for name, value in row.get("evaluation", {}).items()}
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
