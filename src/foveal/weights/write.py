"""Writes a module's tensors in the published layout, and whole checkpoint folders all or nothing.

A folder is written under a temporary name beside its target, flushed to the disk, and only then takes
the target's name. A crash before that leaves the target as it was.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.core.errors import WeightsError
from foveal.weights.checkpoint import INDEX, SINGLE, some
from foveal.weights.names import NameMap
from foveal.weights.read import share, unfit

SHARD_BYTES = 5 * 10**9
"""Largest file of a checkpoint, as published folders have it."""

_OURS = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|qwen\.tiktoken|model\.safetensors\.index\.json|chat_template\.(json|jinja)|merges\.txt"
    r"|spiece\.model"
    r"|(config|generation_config|preprocessor_config|video_preprocessor_config|processor_config|tokenizer"
    r"|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
)
"""Files of a checkpoint, which may be replaced. A folder that holds anything else is left alone."""


def save(
    module: nn.Module,
    folder: str | os.PathLike[str],
    names: NameMap,
    *,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    replaced: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes the parameters and persistent buffers of `module` into `folder` under their published names.

    The files get their names once all of them are complete. For a whole checkpoint with configuration
    and tokenizer, write everything inside `replacing_folder`.

    Args:
        folder: is made if need be; must not hold tensors yet.
        shard_bytes: tensors are spread over files of at most this size (one tensor is never split);
            one file alone is called model.safetensors, several come with an index.
        dtype: type of the floating tensors in the files; None keeps theirs.
        replaced: our name of a weight -> what is written instead, by the last part of its name (quantized layers).
        metadata: text that goes into every file's header; {"format": "pt"} when None, which other
            libraries expect.

    Raises `WeightsError` when a tensor has no published name or no value, when a value does not fit into
    `dtype`, or when the folder cannot be written; no file is left half written.
    """
    if shard_bytes <= 0:
        raise WeightsError(f"shard_bytes is {shard_bytes}, expected a number above 0.")
    tensors = _published(module, names, replaced or {})
    shards = _shards(tensors, dtype, shard_bytes)
    target = Path(folder)
    done: dict[Path, str] = {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        if present := sorted(p.name for p in target.glob("model*.safetensors*")):
            raise WeightsError(f"{target} holds {some(present)} already; save to a new folder.")
        weight_map: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(shards, start=1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            ready = {name: _ready(name, tensors[name], dtype) for name in shard}
            done[target / f".{file}.part"] = file
            save_file(ready, target / f".{file}.part", metadata=dict(metadata or {"format": "pt"}))
            (target / f".{file}.part").chmod(0o666 & ~_umask())  # the library makes it private
            weight_map.update(dict.fromkeys(shard, file))
            total += sum(t.nbytes for t in ready.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            done[target / f".{INDEX}.part"] = INDEX
            (target / f".{INDEX}.part").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for part in done:
            _flush(part)
        for part, file in done.items():
            part.rename(target / file)
        _flush(target)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder} cannot be written: {error}") from error
    finally:
        for part in done:
            part.unlink(missing_ok=True)


def _published(module: nn.Module, names: NameMap, replaced: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Published name -> tensor, in the module's order."""
    state = module.state_dict(keep_vars=True)
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        if (owner := owners.setdefault(id(tensor), name)) != name:
            raise WeightsError(f"{name} and {owner} are one tensor; a model leaves out the one that is tied.")
    if nameless := [name for name in state if names.sources(name) is None]:
        raise WeightsError(
            f"{len(nameless)} tensors have no published name in {names.where} ({some(nameless)}); add rules for them."
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for published, place in (names.sources(name) or {}).items():
            if name in replaced:
                path = published.rpartition(".")[0]
                tensors.update({f"{path}.{suffix}": part for suffix, part in replaced[name].items()})
                continue
            if problem := unfit(tensor, place):
                raise WeightsError(f"{published} cannot be written: {problem}.")
            tensors[published] = share(tensor.detach(), place)
    if hollow := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise WeightsError(
            f"{len(hollow)} tensors have no values yet ({some(hollow)}); fill the model before saving it."
        )
    if not tensors:
        raise WeightsError("the model has no tensor to save.")
    return tensors


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, shard_bytes: int) -> list[list[str]]:
    """Names by file: in order, a new file whenever the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * kind.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _ready(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor as it goes into a file: on the CPU, in one piece, of the wanted type."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    ready = tensor.detach().to(device="cpu", dtype=kind).contiguous()
    if kind == torch.float16 and tensor.dtype != kind and bool((ready.isinf() & tensor.isfinite().cpu()).any()):
        raise WeightsError(f"{name} has a value that float16 cannot hold; save with bfloat16 or float32.")
    return ready


@contextmanager
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` when the block ends well, and vanishes when it does not.

    An earlier checkpoint under that name is replaced; any other content is refused before the block runs.
    """
    target = Path(folder).absolute()
    temporary = None
    try:
        refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        yield temporary
        for path in temporary.iterdir():
            _flush(path)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a checkpoint is as open as any folder
        _flush(temporary)
        _take_name(temporary, target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder} cannot be written: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_foreign(target: Path) -> None:
    """Raises `WeightsError` if `target` exists and is no folder that a checkpoint may replace."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise WeightsError(f"{target} is not a plain folder; choose another place to save to.")
    if foreign := sorted(p.name for p in target.iterdir() if p.is_dir() or not _OURS.fullmatch(p.name)):
        raise WeightsError(
            f"{target} holds {some(foreign)}, which is no part of a checkpoint and would be lost; "
            "choose a new folder, or move that away."
        )


def _take_name(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`. Files of a replaced folder stay readable for whoever has them open."""
    if not target.exists():
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / "was")
    try:
        temporary.rename(target)
    except OSError:
        (old / "was").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Asks the system to bring a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
