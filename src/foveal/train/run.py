"""`Run`: what a recipe returns. A model, the stages that it goes through, and where the results go."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from foveal.core.errors import ConfigError, neighbours
from foveal.families.base import Family
from foveal.families.describe import folder_of
from foveal.families.dual import DualEncoder
from foveal.families.load import Loaded, load, random_network, save_folder
from foveal.processing.pictures import PictureProcessor
from foveal.processing.processor import Processor
from foveal.train.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """A model with random weights.

    Attributes:
        family, config: what it is.
        processor: its input.
        seed: of the weights.
        std: their deviation.
        begin: changes the network in place, e.g. to take over towers; None for nothing.
    """

    family: Family
    config: Any
    processor: Processor | PictureProcessor
    seed: int = 0
    std: float = 0.02
    begin: Callable[[Any], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run comes from, for replays: the recipe's file, and what the command line set."""

    recipe: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run.

    Attributes:
        model: a checkpoint folder or hub name, a `Fresh` one, or None for the small model inside the package.
        stages: in order; each begins with what the one before learned.
        folder: receives a folder a stage: `log.jsonl`, checkpoints, and at its end `model`, an official checkpoint.
        workers: processes that prepare samples; 0: the training process itself.
        device: "cpu", "cuda", ...; None: an accelerator if there is one.
        parallel: how the processes that torchrun starts share the work. "ddp": each has the whole network and a part
            of every step's samples; "fsdp": the network, gradients and moments are shared out as well; None: there
            is one process. Results differ by the rounding of sums only.
        log_samples: write "set:id" of the samples of every step to `samples-RANK.jsonl` in the stage's folder.
        adapt: changes the loaded model before training, e.g. puts adapters in; None for nothing.
        export: (model, folder) -> writes what a stage gives; None for an official checkpoint.
        evaluate: (model, step) -> figures, in evaluation mode, logged beside the loss; None for nothing.
        origin: the recipe that made the run, if one did.
    """

    model: str | Path | Fresh | None
    stages: tuple[Stage, ...]
    folder: Path
    workers: int = 2
    device: str | None = None
    parallel: Literal["ddp", "fsdp"] | None = None
    log_samples: bool = False
    adapt: Callable[[Loaded], None] | None = None
    export: Callable[[Loaded, Path], None] | None = None
    evaluate: Callable[[Loaded, int], Mapping[str, float]] | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("the run has no stage; give it at least one.")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConfigError(f"two stages of the run have one name: {', '.join(names)}.")
        types = {stage.dtype for stage in self.stages}
        if len(types) > 1:
            raise ConfigError(
                f"the stages compute in {', '.join(sorted(map(str, types)))}; a run has one dtype, so that what stays "
                "frozen is not rounded on the way."
            )
        if self.parallel not in (None, "ddp", "fsdp"):
            raise ConfigError(f'Run.parallel is {self.parallel!r}; expected "ddp", "fsdp", or None for one process.')
        if not isinstance(self.log_samples, bool):
            raise ConfigError(f"Run.log_samples is {self.log_samples!r}; expected true or false.")
        if not isinstance(self.workers, int) or self.workers < 0:
            raise ConfigError(f"Run.workers is {self.workers!r}; expected a whole number, 0 or more.")

    def stage(self, name: str) -> Stage:
        """The stage of this name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ConfigError(f"the run has no stage {name!r}; {neighbours(name, [s.name for s in self.stages])}")

    def changed(self, values: Mapping[str, Any]) -> "Run":
        """The run with other values: "folder" or "workers" of its own, "STAGE.FIELD" of one stage, "train.FIELD" of
        all stages.

        Raises `ConfigError` for an unknown name.
        """
        names = ["train", *(stage.name for stage in self.stages)]
        new: dict[str, Any] = {}
        staged: dict[str, dict[str, Any]] = {name: {} for name in names}
        for key, value in values.items():
            first, dot, rest = key.partition(".")
            if dot and first in names:
                staged[first][rest] = value
            elif dot:
                raise ConfigError(f"the run has no stage {first!r}; {neighbours(first, names)}")
            elif key in SETTINGS:
                new[key] = Path(value) if key == "folder" else value
            else:
                raise ConfigError(f"the run has no setting {key!r}; {neighbours(key, [*SETTINGS, *_dotted(names)])}")
        stages = tuple(s.changed(_over(staged["train"], staged[s.name])) for s in self.stages)
        return replace(self, stages=stages, **new)

    def load(self) -> Loaded:
        """The model before the first stage."""
        dtype, device = self.stages[0].dtype, self.device or "cpu"
        if isinstance(self.model, Fresh):
            fresh = self.model
            network = random_network(fresh.family, fresh.config, seed=fresh.seed, std=fresh.std)
            if isinstance(network, DualEncoder):  # scale and offset begin as the papers say, not at random
                first = dict(fresh.family.build(fresh.config).named_parameters())
                with torch.no_grad():
                    for name, parameter in network.named_parameters():
                        if name.startswith("logit_"):
                            parameter.copy_(first[name])
            if fresh.begin is not None:
                fresh.begin(network)
            loaded = Loaded(
                folder=Path(), family=fresh.family, config=fresh.config, processor=fresh.processor, generation={},
                network=network.to(device),
            )  # fmt: skip
        else:
            loaded = load(folder_of(self.model), dtype=dtype, device=device)
        if self.adapt is not None:
            self.adapt(loaded)
        return loaded

    def save(self, loaded: Loaded, folder: Path) -> None:
        """Writes the model as `export` says."""
        if self.export is not None:
            self.export(loaded, folder)
            return
        save_folder(
            folder,
            family=loaded.family,
            config=loaded.config,
            network=loaded.network,
            processor=loaded.processor,
            generation=loaded.generation,
        )


SETTINGS = tuple(f.name for f in fields(Run) if f.name not in ("stages", "origin", "adapt", "export", "evaluate"))
"""What a command line may set of a run."""


def sized(loaded: Loaded, stage: Stage) -> Loaded:
    """The model at the picture size of a stage, where its family sees one size.

    Nothing in the network changes: towers resize their tables of positions to the picture (bicubic, as the release).
    Raises `ConfigError` where the family has no such size to set, and says what it has.
    """
    if stage.pixels is None:
        return loaded
    side, processor, config = stage.pixels.side_px, loaded.processor, loaded.config
    vision: Any = processor.processing.vision
    ranged = vision.pixel_range(images=True, videos=False) is not None
    sides = hasattr(config, "side_px") and hasattr(vision, "sized")
    where = f"stage {stage.name}: {loaded.family.name}"
    if isinstance(processor, Processor) and sides:
        if stage.pixels.options:
            raise ConfigError(
                f"{where} sees all pictures at one size, so min_px and max_px mean nothing; set side_px instead."
            )
        if side is None:
            return loaded
        resized = processor.changed(vision=vision.sized(side))
        return replace(loaded, config=replace(config, side_px=side), processor=resized)
    if stage.pixels.options and not ranged:
        raise ConfigError(
            f"{where} sees all pictures at one size, so min_px and max_px mean nothing; leave `pixels` out."
        )
    if side is not None:
        instead = "learns from pictures at the size of its checkpoint; leave `pixels` out"
        if ranged:
            instead = "sees pictures of any size; set min_px and max_px instead"
        raise ConfigError(f"{where} {instead} (side_px is {side}).")
    return loaded


def _over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all stages and of one: its own count, and a field that it sets as a whole loses common parts."""
    return {key: value for key, value in common.items() if key.partition(".")[0] not in own} | dict(own)


def _dotted(names: list[str]) -> list[str]:
    return [f"{name}.{field.name}" for name in names for field in fields(Stage)]
