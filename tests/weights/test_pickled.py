"""PyTorch's own files read without running them."""

import collections
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from foveal.core.errors import WeightsError
from foveal.weights.pickled import read_pickled

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"a.{str(kind)[6:]}": (torch.randn(3, 5, generator=generator) * 9).to(kind) for kind in KINDS}
    base = torch.randn(4, 6, generator=generator)
    made |= {
        "view": base[1:, 2:4],
        "turned": base.T,
        "whole": base,
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(3.5),
    }
    return made


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_come_back(tmp_path: Path, zipped: bool, protocol: int):
    path = tmp_path / "model.bin"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    same(read_pickled(path), tensors())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_with_parameters_and_buffers(tmp_path: Path, zipped: bool):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv2d(2, 2, 3))
    expected = module.state_dict()
    torch.save(expected, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    same(read_pickled(tmp_path / "model.pt"), expected)
    kept = module.state_dict(keep_vars=True)
    torch.save(kept, tmp_path / "vars.pt", _use_new_zipfile_serialization=zipped)
    same(read_pickled(tmp_path / "vars.pt"), expected)


def test_a_training_checkpoint_gives_its_weights(tmp_path: Path):
    weights = {f"module.{name}": tensor for name, tensor in tensors().items()}
    content = {"epoch": 3, "name": "run", "state_dict": weights, "optimizer": {"state": {0: torch.ones(3)}, "lr": 0.1}}
    torch.save(content, tmp_path / "epoch.pt")
    same(read_pickled(tmp_path / "epoch.pt"), tensors())


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("count", torch.tensor([1, 2]))
        self.width = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self.scale


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Inner()
        self.text_projection = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) @ self.text_projection


@pytest.mark.parametrize("half", [True, False])
def test_a_torchscript_archive_gives_its_state(tmp_path: Path, half: bool):
    """The form in which OpenAI published CLIP."""
    module = Outer().half() if half else Outer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module)
        scripted.save(str(tmp_path / "ViT.pt"))
        expected = dict(scripted.state_dict())
    same(read_pickled(tmp_path / "ViT.pt"), expected)


def test_tensors_lie_in_a_private_memory_map(tmp_path: Path):
    torch.save(tensors(), tmp_path / "model.bin")
    before = (tmp_path / "model.bin").read_bytes()
    found = read_pickled(tmp_path / "model.bin")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "model.bin") in maps.read_text()
    found["a.float32"].zero_()
    assert (tmp_path / "model.bin").read_bytes() == before


class Touch:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(tmp_path: Path, zipped: bool):
    path, witness = tmp_path / "evil.bin", tmp_path / "witness"
    torch.save({"weight": torch.ones(2), "other": Touch(witness)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"other would be made by (posix|nt)\.mkdir, which is not run"):
        read_pickled(path)
    torch.save(Touch(witness), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="expected tensors by name; no code is run"):
        read_pickled(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)  # what would have happened
    assert witness.exists()


def test_a_whole_module_is_refused_by_name(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"holds an object of torch\.nn\.modules\.linear\.Linear"):
        read_pickled(tmp_path / "module.pt")


def rewritten(path: Path, change: Any) -> Path:
    """The archive with entries changed by `change(name, content) -> content or None`."""
    target = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n, c: None if n.endswith("data.pkl") else c, "no data.pkl"),
        (lambda n, c: None if n.endswith("data/0") else c, "lacks the storage '0'"),
        (lambda n, c: c[:-1] if n.endswith("data/0") else c, "storage '0' was cut short"),
        (lambda n, c: c[:-4] if n.endswith("data/0") else c, r"shape \[3, 5\] does not fit into its 14 stored values"),
        (lambda n, c: c[: len(c) // 2] if n.endswith("data.pkl") else c, "damaged program|without an end"),
        (lambda n, c: b"big" if n.endswith("byteorder") else c, "big-endian"),
        (lambda n, c: c.replace(b"FloatStorage", b"QInt8Storage") if n.endswith("data.pkl") else c, "QInt8Storage"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, says: str):
    torch.save({"a": torch.ones(3, 5)}, tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=says):
        read_pickled(rewritten(tmp_path / "model.bin", change))


def test_an_archive_whose_storages_are_not_aligned_is_copied(tmp_path: Path):
    torch.save(tensors(), tmp_path / "model.bin")
    same(read_pickled(rewritten(tmp_path / "model.bin", lambda n, c: c)), tensors())


def test_compressed_storages_are_refused(tmp_path: Path):
    torch.save(tensors(), tmp_path / "model.bin")
    with (
        zipfile.ZipFile(tmp_path / "model.bin") as old,
        zipfile.ZipFile(tmp_path / "c.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(WeightsError, match="compressed or encrypted"):
        read_pickled(tmp_path / "c.bin")


@pytest.mark.parametrize("content", [b"", b"no file of tensors", pickle.dumps({"a": 1}), b"PK\x03\x04 broken"])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(WeightsError, match="is no file of tensors that PyTorch wrote"):
        read_pickled(tmp_path / "x.bin")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_pickled(tmp_path / "absent.bin")


def test_an_older_file_that_was_cut_is_named(tmp_path: Path):
    torch.save({"a": torch.ones(3, 5)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.bin").read_bytes()
    for size in (len(content) - 1, len(content) - 60, len(content) - 70, 200, 20):
        (tmp_path / "cut.bin").write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"cut\.bin"):
            read_pickled(tmp_path / "cut.bin")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_does_anything_but_raise(tmp_path: Path, data: st.DataObject):
    """Bytes of the program changed at random: tensors or a `WeightsError`, nothing else."""
    path = tmp_path / "model.bin"
    if not path.exists():
        torch.save(collections.OrderedDict(tensors()), path)
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        program = bytearray(archive.read(name))
    for _ in range(data.draw(st.integers(1, 3))):
        program[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    changed = rewritten(path, lambda n, c: bytes(program) if n == name else c)
    try:
        found = read_pickled(changed)
    except WeightsError:
        return
    for tensor in found.values():
        tensor.sum()  # lies within the file


def test_a_cycle_of_objects_ends(tmp_path: Path):
    """A dictionary that holds itself."""
    program = io.BytesIO()
    program.write(b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.")
    with zipfile.ZipFile(tmp_path / "cycle.bin", "w") as archive:
        archive.writestr("cycle/data.pkl", program.getvalue())
    with pytest.raises(WeightsError, match="nested more than 64 deep"):
        read_pickled(tmp_path / "cycle.bin")


def test_a_few_bytes_that_say_a_great_deal_are_refused(tmp_path: Path):
    """Forty dictionaries, each of which holds the one before it twice: 2 ** 40 ways through them."""
    value: dict[str, Any] = {}
    for _ in range(40):
        value = {"a": value, "b": value}
    with zipfile.ZipFile(tmp_path / "many.bin", "w") as archive:
        archive.writestr("many/data.pkl", pickle.dumps(value, protocol=2))
    with pytest.raises(WeightsError, match="more than 100,000"):
        read_pickled(tmp_path / "many.bin")
