"""Adapter folders of the PEFT library, read and written: adapter_config.json and adapter_model.safetensors.

A key names a layer by the path of its module in the library that trained it, behind `base_model.model.`, then
`lora_A.weight` [R, inputs] and `lora_B.weight` [outputs, R], or `lora_embedding_A` and `lora_embedding_B`; an adapter's
name may stand before `.weight`. Layers that were trained whole (`modules_to_save`) stand under their own names. Both
spellings of paths that name maps know are read. `fan_in_fan_out` says how PEFT merges and changes nothing here.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foveal.core.config import read_json
from foveal.core.errors import ConfigError, WeightsError, neighbours
from foveal.weights.checkpoint import read_header, some
from foveal.weights.names import NameMap, Place
from foveal.weights.pickled import read_pickled

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."

_THIN = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.([^.]+))??(?:\.weight)?")
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.([^.]+))?|\.base_layer)?\.([^.]+)")

_KNOWN = frozenset(
    "r lora_alpha lora_dropout target_modules exclude_modules use_rslora modules_to_save rank_pattern alpha_pattern "
    "layers_to_transform peft_type bias init_lora_weights".split()
)
_HARMLESS = frozenset(
    "auto_mapping base_model_name_or_path fan_in_fan_out inference_mode layers_pattern megatron_core peft_version "
    "qalora_group_size revision runtime_config task_type".split()
)
_FOREIGN_START = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that change the base weights, so that the adapter does not fit the published ones."""


@dataclass(frozen=True, kw_only=True)
class Thin:
    """The update of one published layer.

    Attributes:
        module: the layer's published path.
        place: where its weight goes.
        a, b: [R, inputs] and [outputs, R].
        alpha: the update is scaled by alpha / R, or alpha / sqrt(R).
        embedding: whether the layer is an embedding.
    """

    module: str
    place: Place
    a: Tensor
    b: Tensor
    alpha: float
    embedding: bool = False


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter as its files describe it.

    Attributes:
        thin: updates of layers.
        whole: tensors that were trained whole, by their published names, and their places.
        dropout, rslora: of all updates.
        base: what the adapter says it was trained on.
        targets, exclude: which modules were adapted: names or one regular expression.
        nested: whether paths are those of today's modules, where these are called otherwise than published.
        complete: whether all layers that `targets` match must be there.
    """

    thin: tuple[Thin, ...]
    whole: Mapping[str, tuple[Place, Tensor]] = field(default_factory=dict)
    dropout: float = 0.0
    rslora: bool = False
    base: str = ""
    targets: str | tuple[str, ...] = ()
    exclude: str | tuple[str, ...] = ()
    nested: bool = False
    complete: bool = True


def read_adapter(folder: Path, names: NameMap) -> Adapter:
    """The adapter in `folder`, its layers found by the family's `names`.

    Raises `ConfigError` for a setting that is not computed and `WeightsError` for tensors that are damaged, missing,
    surplus, or belong to no layer of the family.
    """
    said = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    _check(said, where)
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, tuple[Place, Tensor]] = {}
    embeddings, adapters, nested = set[str](), set[str](), False
    for key, tensor in _tensors(folder).items():
        path = key.removeprefix(PREFIX)
        nested = nested or any(path.startswith(other) for other, _ in names.modules)
        if "lora_magnitude_vector" in path:
            raise ConfigError(f"{where} is of DoRA ({key!r}), which is not computed; merge it with PEFT first.")
        if thin := _THIN.fullmatch(path):
            module, embedding, half, adapter = thin.groups()
            adapters.add(adapter or "default")
            if embedding:
                embeddings.add(module)
            if halves.setdefault(module, {}).setdefault(half, tensor) is not tensor:
                raise WeightsError(f"{folder} holds lora_{half} of {module} twice; save one adapter alone.")
        elif full := _WHOLE.fullmatch(path):
            adapters.add(full[2] or "default")
            published = names.official(f"{full[1]}.{full[3]}")
            place = names.place(published)
            if place is None or "lora_" in path:
                raise WeightsError(_stranger(key, folder, names))
            whole[published] = place, tensor
        else:
            raise WeightsError(_stranger(key, folder, names))
    if len(adapters) > 1:
        raise WeightsError(f"{folder} holds several adapters ({some(sorted(adapters))}); save one of them alone.")
    parts = []
    for module, pair in halves.items():
        place = names.place(f"{module}.weight")
        if place is None:
            raise WeightsError(_stranger(module, folder, names))
        if missing := {"A", "B"} - pair.keys():
            raise WeightsError(f"{folder}: {module} lacks lora_{min(missing)}; save the adapter again.")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2:
            raise ConfigError(f"{folder}: {module} is a convolution's update {list(a.shape)}, which is not computed.")
        rank = _pattern(said.get("rank_pattern") or {}, module, said["r"], where)
        if not a.shape[0] == b.shape[1] == rank:
            raise WeightsError(
                f"{folder}: {module} has A {list(a.shape)} and B {list(b.shape)}, but {CONFIG} says rank {rank}."
            )
        alpha = _pattern(said.get("alpha_pattern") or {}, module, said.get("lora_alpha", 8), where)
        official = names.official(f"{module}.weight").removesuffix(".weight")
        parts.append(Thin(module=official, place=place, a=a, b=b, alpha=float(alpha), embedding=module in embeddings))
    _no_twins(parts, folder)
    adapter = Adapter(
        thin=tuple(parts),
        whole=whole,
        dropout=float(said.get("lora_dropout") or 0.0),
        rslora=bool(said.get("use_rslora")),
        base=str(said.get("base_model_name_or_path") or ""),
        targets=_targets(said.get("target_modules"), "target_modules", where),
        exclude=_targets(said.get("exclude_modules"), "exclude_modules", where),
        nested=nested,
        complete=not said.get("layers_to_transform"),
    )
    strange = [t.module for t in adapter.thin if not expects(adapter, names, t.module)]
    if strange and adapter.targets:
        raise WeightsError(f"{folder} updates {some(strange)}, which target_modules in {CONFIG} does not name.")
    return adapter


def expects(adapter: Adapter, names: NameMap, module: str) -> bool:
    """Whether the adapter's settings name the published layer `module`, in the spelling of its files."""
    path = names.module_path(module) if adapter.nested else module
    if adapter.targets == "all-linear":
        return not path.endswith("lm_head")
    return _matches(adapter.targets, path) and not _matches(adapter.exclude, path)


def write_adapter(folder: Path, adapter: Adapter, names: NameMap) -> None:
    """Writes `adapter` to `folder` as PEFT does, both files whole or not at all.

    Paths are in the spelling of today's modules when `adapter.nested`, else as published.
    """

    def path(published: str) -> str:
        return names.module_path(published) if adapter.nested else published

    if not adapter.thin:
        raise WeightsError("there is no update to save; apply an adapter first.")
    tensors: dict[str, Tensor] = {}
    for thin in adapter.thin:
        for half, tensor in (("A", thin.a), ("B", thin.b)):
            end = f"lora_embedding_{half}" if thin.embedding else f"lora_{half}.weight"
            tensors[f"{PREFIX}{path(thin.module)}.{end}"] = tensor.detach().cpu().clone().contiguous()
    for published, (_, tensor) in adapter.whole.items():
        tensors[PREFIX + path(published)] = tensor.detach().cpu().clone().contiguous()
    ranks = {path(t.module): t.a.shape[0] for t in adapter.thin}
    alphas = {path(t.module): t.alpha for t in adapter.thin}
    rank, alpha = (max(set(v.values()), key=list(v.values()).count) for v in (ranks, alphas))
    said = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base or None,
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {n: _number(a) for n, a in alphas.items() if a != alpha},
        "modules_to_save": sorted({path(n).rpartition(".")[0] for n in adapter.whole}) or None,
        "use_rslora": adapter.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts = {folder / f".{name}.part": folder / name for name in (WEIGHTS, CONFIG)}
        weights, config = parts
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        weights.chmod(config.stat().st_mode & 0o777)  # the library makes it private
        for part, target in parts.items():
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(target)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder} cannot be written: {error}") from None


def _check(said: Mapping[str, Any], where: str) -> None:
    """Refuses every setting that would change what the adapter computes and is not known here."""
    if said.get("peft_type") != "LORA":
        raise ConfigError(f"{where} is of the kind {said.get('peft_type')!r}; LORA is read.")
    if said.get("bias", "none") != "none":
        raise ConfigError(
            f"{where}: bias is {said['bias']!r}; only adapters that leave biases alone ('none') are read."
        )
    for key, value in said.items():
        if value and key not in _KNOWN | _HARMLESS:
            raise ConfigError(f"{where}: {key} = {value!r} is not computed; merge the adapter with PEFT first.")
    start = str(said.get("init_lora_weights")).lower()
    if start.startswith(_FOREIGN_START):
        raise ConfigError(f"{where}: begun by {start!r}, which changes the base weights; let PEFT convert it to LoRA.")
    rank = said.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ConfigError(f"{where}: r is {rank!r}, expected a whole number of at least 1.")


def _tensors(folder: Path) -> dict[str, Tensor]:
    path, old = folder / WEIGHTS, folder / OLD_WEIGHTS
    if not path.exists():
        if old.exists():
            return read_pickled(old)
        raise WeightsError(f"{folder} has no {WEIGHTS}; pass the folder that PEFT saved an adapter to.")
    read_header(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not tensors:
        raise WeightsError(f"{path} holds no tensor; save the adapter again.")
    return tensors


def _targets(value: Any, key: str, where: str) -> str | tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ConfigError(f"{where}: {key} is no regular expression: {error}.") from None
        return value
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{where}: {key} is {value!r}, expected names or one regular expression.")
    return tuple(value)


def _matches(targets: str | Iterable[str], path: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _pattern(table: Any, module: str, default: Any, where: str) -> Any:
    """The value of the first pattern that is the end of a layer's path, as PEFT reads its two tables."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {table!r} is no table of patterns.")
    for pattern, value in table.items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is no pattern: {error}.") from None
        if found:
            default = value
            break
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise ConfigError(f"{where}: {module} has {default!r} for a number.")
    return default


def _no_twins(parts: Iterable[Thin], folder: Path) -> None:
    seen: set[tuple[str, int]] = set()
    for thin in parts:
        key = thin.place.ours, thin.place.share
        if key in seen:
            raise WeightsError(f"{folder} updates {thin.module} in two spellings; save the adapter again.")
        seen.add(key)


def _stranger(key: str, folder: Path, names: NameMap) -> str:
    short = re.sub(r"[0-9]+", "{i}", names.official(key.removeprefix(PREFIX)))
    known = (name for rule in names.rules for name in rule.published)
    return f"{folder}: {key!r} belongs to no layer of {names.where}; {neighbours(short, known)}"


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
