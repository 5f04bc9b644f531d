"""What a training stage is, as data: which samples, how long, how fast, and which tensors learn."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from foveal.core.config import from_mapping
from foveal.core.errors import ConfigError, neighbours
from foveal.core.media import MediaBudget
from foveal.data.augment import Augmentation

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]


@runtime_checkable
class Numbered(Protocol):
    """Samples by number; `foveal.data.mixture.Mixture` is one."""

    def at(self, n: int) -> tuple[Any, int]:
        """Sample number n, and which run through its source it belongs to."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The size at which a stage sees pictures.

    Attributes:
        min_px, max_px: smallest and largest area, for families that see any size; None: as the checkpoint says.
        side_px: side of the square, for Qwen-VL (tables of positions are resized on the way). Other families that see
            one size train at that of the checkpoint.
    """

    min_px: int | None = None
    max_px: int | None = None
    side_px: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"Pixels.{name} is {value}; it must be at least 1.")
        if self.min_px is not None and self.max_px is not None and self.min_px > self.max_px:
            raise ConfigError(f"Pixels.min_px is {self.min_px}, above max_px, {self.max_px}.")

    @property
    def options(self) -> dict[str, int]:
        """As `Processor.process` takes them."""
        named = {"min_pixels": self.min_px, "max_pixels": self.max_px}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        name: also the name of its folder.
        steps: optimizer steps.
        batch: samples a step, over all processes. Step s takes the samples `s * batch` to `(s + 1) * batch - 1`, so a
            stage that is resumed repeats and loses none.
        trainable: (pattern, learning rate, or False or None to freeze) for parameter names, the first match counts.
            A name that no pattern matches is an error.
        data: the samples by number; None for loops that bring their own batches (`foveal.train.loop`).
        task: what is learned from a sample (`foveal.train.task`); None: to say the answers.
        pixels: at which size pictures are seen; None: as the checkpoint says.
        max_tokens: tokens in a pack at most. A process takes its share of a step in as few packs as that allows, and
            adds up their gradients.
        unfit: what becomes of a sample that cannot be read or is longer than a pack: "stop" with an error that names
            it, or "skip" it, which the log counts.
        augment: how pictures are changed, their boxes with them; or a function (sample, generator of this sample's own)
            -> sample; None: as they are. Sample number n draws from `default_rng([seed, n])`, so that a run that goes
            on draws the same.
        budget: bounds for media.
        warmup: steps of linear growth of the rate.
        schedule: after the warm-up, "cosine" to `floor`; "constant"; or "steps": times `drop` at 80 % and again at
            90 % of the steps (DeepSeek LLM, section 2.3).
        floor: share of the rate that is left at the end of the cosine.
        drop: see `schedule`.
        tower_decay: the rate of a vision tower's block is that of what follows it times this; 1 for none.
        weight_decay: AdamW's, on tensors of two or more dimensions.
        betas, eps: AdamW's.
        clip: largest norm of the gradient.
        average: decay of the running average of the weights that checkpoints keep beside them, and that is exported;
            0 for none.
        dtype: type in which the network computes ("fp16" with a scaled loss); None: as it is. What learns is kept in
            float32.
        checkpointing: keep only the results of whole layers for the backward pass and compute the others again.
        seed: of whatever is random in a step; every step has its own generator.
        save_every, log_every: steps between checkpoints and between log lines.
        keep_last: newest checkpoints that are kept.
        keep_every: checkpoints at multiples of these steps are kept as well; 0 for none.
        eval_every: steps between evaluations; 0: at the end only.
    """

    name: str
    steps: int
    batch: int
    trainable: tuple[tuple[str, float | bool | None], ...]
    data: Any = None
    task: Any = None
    pixels: Pixels | None = None
    max_tokens: int = 8192
    unfit: Literal["stop", "skip"] = "stop"
    augment: Augmentation | Callable[..., Any] | None = None
    budget: MediaBudget = field(default_factory=MediaBudget)
    warmup: int = 200
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    floor: float = 0.02
    drop: float = 0.316
    tower_decay: float = 1.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0
    average: float = 0.0
    dtype: Precision | None = None
    checkpointing: bool = False
    seed: int = 0
    save_every: int = 250
    log_every: int = 50
    keep_last: int = 2
    keep_every: int = 0
    eval_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "log_every", "max_tokens", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Stage.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("keep_every", "eval_every", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Stage.{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"Stage.warmup is {self.warmup}; expected 0 to {self.steps} (its steps).")
        for name in ("clip", "eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"Stage.{name} is {getattr(self, name)}; it must be above 0.")
        if not 0 < self.tower_decay <= 1:
            raise ConfigError(f"Stage.tower_decay is {self.tower_decay}; expected above 0, at most 1.")
        if not 0 <= self.average < 1:
            raise ConfigError(f"Stage.average is {self.average}; expected 0 to below 1.")
        for pattern, rate in self.trainable:
            if rate is True or (rate and not 0 < rate < math.inf):
                raise ConfigError(
                    f"stage {self.name}: {pattern!r} has the rate {rate!r}; expected a number above 0, or False."
                )

    def factor(self, step: int) -> float:
        """What the rate is multiplied with at `step` (from 0): linear warm-up, then as `schedule` says."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return self.drop ** sum(step >= share * self.steps for share in (0.8, 0.9))
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    @property
    def rate(self) -> float:
        """The highest learning rate of the stage."""
        return max((float(rate) for _, rate in self.trainable if rate), default=0.0)

    def changed(self, values: Mapping[str, Any]) -> "Stage":
        """The stage with other values. `rate` is the highest rate; the others keep their share of it. "FIELD.PART"
        changes one field of a field, such as "augment.flip" or "pixels.max_px".

        Raises `ConfigError` for a name that no field has (naming its neighbours) or a value of another type.
        """
        names = [f.name for f in fields(self)]
        new = {name: getattr(self, name) for name in names}
        inner: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            name, dot, part = key.partition(".")
            if name not in names and key != "rate":
                raise ConfigError(f"stage {self.name}: unknown key {name!r}; {neighbours(name, [*names, 'rate'])}")
            if dot:
                inner.setdefault(name, {})[part] = value
            else:
                new[key] = value
        for name, parts in inner.items():
            new[name] = self._with_parts(name, new[name], parts)
        if (rate := new.pop("rate", None)) is not None:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
                raise ConfigError(f"stage {self.name}: rate is {rate!r}; expected a number above 0.")
            if not self.rate:
                raise ConfigError(f"stage {self.name}: nothing learns, so it has no rate to set; see `trainable`.")
            new["trainable"] = tuple((p, r and r * (rate / self.rate)) for p, r in self.trainable)
        made = {name: new.pop(name) for name in ("data", "task")}  # objects, not settings
        return replace(from_mapping(Stage, new, f"stage {self.name}"), **made)

    def _with_parts(self, name: str, value: Any, parts: Mapping[str, Any]) -> Any:
        """The value of a field that has fields of its own, with some of these changed."""
        kind: Any = PARTED.get(name)
        if kind is None:
            raise ConfigError(f"stage {self.name}: {name} has no parts; these have: {', '.join(PARTED)}.")
        if value is not None and not isinstance(value, kind | Mapping):
            raise ConfigError(f"stage {self.name}: {name} is {value!r}, which has no parts; set {name} as a whole.")
        before = {} if value is None else dict(value if isinstance(value, Mapping) else vars(value))
        return from_mapping(kind, {**before, **parts}, f"stage {self.name}.{name}")

    def rates(self, named: Iterable[tuple[str, T]]) -> list[tuple[str, T, float]]:
        """Name, parameter and rate of all that learns.

        Raises `ConfigError` for a parameter without a rule, and for a rule that no parameter follows.
        """
        named = list(named)
        decay = tower_factors([name for name, _ in named], self.tower_decay)
        rows, used = [], set()
        for name, parameter in named:
            for pattern, rate in self.trainable:
                if fnmatchcase(name, pattern):
                    used.add(pattern)
                    if rate:
                        rows.append((name, parameter, rate * decay.get(name, 1.0)))
                    break
            else:
                raise ConfigError(f"stage {self.name}: no rule says whether {name!r} learns; add a pattern.")
        _all_used(self.name, [p for p, _ in self.trainable], used)
        if not rows:
            raise ConfigError(f"stage {self.name}: every parameter is frozen; give one a learning rate.")
        return rows


PARTED = {"pixels": Pixels, "augment": Augmentation, "budget": MediaBudget}
"""Fields of a stage that have fields of their own."""

_BLOCK = re.compile(r"(.*\bvision\.(?:.*\.)?)blocks\.(\d+)\.")
_BEFORE = ("patch.", "positions", "class_token", "norm_before.")


def tower_factors(names: Sequence[str], decay: float) -> dict[str, float]:
    """What the rate of each tensor of a vision tower is multiplied with (BEiT, Bao et al. 2022, section 3.1).

    Of a tower with N blocks, block i (from 0) gets decay ** (N - i), patches and positions decay ** (N + 1), and what
    follows the blocks 1. Names that are no tower's are left out.
    """
    if decay == 1.0:
        return {}
    depths: dict[str, int] = {}
    for name in names:
        if match := _BLOCK.match(name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    found = {}
    for name in names:
        for tower, depth in depths.items():
            if (match := _BLOCK.match(name)) and match[1] == tower:
                found[name] = decay ** (depth - int(match[2]))
            elif name.startswith(tower) and name.removeprefix(tower).startswith(_BEFORE):
                found[name] = decay ** (depth + 1)
    return found


def _all_used(stage: str, patterns: Sequence[str], used: set[str]) -> None:
    idle = [p for p in patterns if p not in used]
    if idle:
        raise ConfigError(f"stage {stage}: no parameter matches {', '.join(map(repr, idle))}; mend or drop it.")
