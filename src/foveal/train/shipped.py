"""What the shipped recipes share: where data and models come from, in full size and in "tiny"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from foveal.core.errors import ConfigError
from foveal.data.formats import open_source
from foveal.data.mixture import Mixture
from foveal.data.toy import ToySet
from foveal.train.run import Fresh
from foveal.train.stage import Stage
from foveal.train.tiny import tiny

Size = Literal["full", "tiny"]

TINY: Mapping[str, Any] = {
    "steps": 60, "batch": 8, "warmup": 6, "rate": 2e-3, "dtype": "fp32", "checkpointing": False, "save_every": 20,
    "log_every": 5, "max_tokens": 2048,
}  # fmt: skip
"""What a stage is changed to in the tiny size: minutes on two cores, and rates that narrow networks need."""

SUFFIXES = ("", ".jsonl", ".json", ".parquet", ".tar")


def sets(size: Size, data: str | None, weights: Mapping[str, float], toys: Mapping[str, str]) -> Mixture:
    """The mixture of a stage.

    Args:
        size: "full", or "tiny" for drawn pictures.
        data: folder with a data set for every name in `weights`: a file NAME.jsonl, .json, .parquet or .tar, or a
            folder NAME of such files.
        weights: the share of each set.
        toys: the toy task that stands for each set in the tiny size.

    Raises `ConfigError` where there is no data.
    """
    if size == "tiny" and data is None:
        return Mixture([(ToySet(toys[name], 256, name=name), weight) for name, weight in weights.items()])
    if data is None:
        raise ConfigError(f"name the data: --set data=FOLDER, with a set for each of {', '.join(weights)}.")
    parts = []
    for name, weight in weights.items():
        paths = [Path(data) / f"{name}{suffix}" for suffix in SUFFIXES]
        found = next((path for path in paths if path.exists()), None)
        if found is None:
            raise ConfigError(f"{data} has no set {name!r}; put a folder or a file {name}.jsonl, .parquet, ... there.")
        parts.append((open_source(found, name=name), weight))
    return Mixture(parts)


def begin(family: str, size: Size, model: str | None, before: Path | None = None) -> str | Path | Fresh:
    """The model that a stage begins with: `model` if named ("tiny" for random weights), else what the stage before
    left in `before`. Raises `ConfigError` where neither is there."""
    if model == "tiny" or (size == "tiny" and model is None and before is None):
        return tiny(family)
    if model is not None:
        return model
    if before is None:
        raise ConfigError("name the checkpoint to begin with: --set model=FOLDER, or size=tiny for random weights.")
    if not before.is_dir():
        raise ConfigError(f"{before} is not there yet; run the stage before, or name a checkpoint: --set model=FOLDER.")
    return before


def in_size(size: Size, stage: Stage, **changes: Any) -> Stage:
    """The stage as it is, or changed to the tiny size."""
    return stage if size == "full" else stage.changed({**TINY, **changes})
