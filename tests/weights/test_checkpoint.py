"""Headers and indexes are believed only after they were checked; every error names the file."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from foveal.core.errors import WeightsError
from foveal.weights.checkpoint import INDEX, SINGLE, open_checkpoint, read_header

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), start: int = 0, stop: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards and their index."""
    save_file({"a": TENSORS["a"]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return tmp_path


def test_a_single_file_is_described(tmp_path: Path):
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    found = open_checkpoint(tmp_path)
    assert {n: (t.dtype, t.shape, t.size_bytes) for n, t in found.tensors.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("BF16", (4,), 8),
    }
    assert (found.values, found.size_bytes, found.dtype) == (10, 32, "F32")


def test_shards_are_put_together(sharded: Path):
    found = open_checkpoint(sharded)
    assert {n: t.file.name for n, t in found.tensors.items()} == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", ".x.safetensors", 7],
)
def test_an_index_cannot_leave_its_folder(sharded: Path, name: object):
    change_index(sharded, lambda index: index["weight_map"].update(a=name))
    with pytest.raises(WeightsError, match="expected the plain name of a file beside it"):
        open_checkpoint(sharded)


def test_an_index_names_safetensors_only(sharded: Path):
    change_index(sharded, lambda index: index["weight_map"].update(a="pytorch_model.bin"))
    with pytest.raises(WeightsError, match=r"'a' is in 'pytorch_model.bin', which is not a \.safetensors file"):
        open_checkpoint(sharded)


def test_a_missing_shard_is_named(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks 1 of the 2 files .* model-00002-of-00002.safetensors"):
        open_checkpoint(sharded)


def test_index_and_files_have_to_agree(sharded: Path):
    change_index(sharded, lambda index: index["weight_map"].update(c="model-00002-of-00002.safetensors"))
    with pytest.raises(WeightsError, match=r"model-00002.* lacks 1 tensors .*: c;"):
        open_checkpoint(sharded)
    change_index(sharded, lambda index: index.update(weight_map={"a": "model-00002-of-00002.safetensors"}))
    with pytest.raises(WeightsError, match=r"model-00002.* lacks 1 tensors .*: a;"):
        open_checkpoint(sharded)
    save_file(TENSORS, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"holds 1 tensors that .* does not list there: b"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', "{}"])
def test_a_broken_index_is_named(tmp_path: Path, text: str):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(WeightsError, match=INDEX):
        open_checkpoint(tmp_path)


def test_folders_without_weights_say_what_they_hold(tmp_path: Path):
    with pytest.raises(WeightsError, match="is not a folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(WeightsError, match="holds neither"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"holds pytorch_model\.bin but no safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(WeightsError, match="fetch the index too"):
        open_checkpoint(tmp_path)


def test_two_answers_are_one_too_many(sharded: Path):
    save_file(TENSORS, sharded / SINGLE)
    with pytest.raises(WeightsError, match="holds both"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"x": entry()}, b"1234567", "has 7 bytes of data, its header describes 8"),
        ({"x": entry()}, b"123456789", "has 9 bytes of data, its header describes 8"),
        ({"x": entry(start=4, stop=12)}, b"123456789012", "'x' begins at byte 4 of the data, expected 0"),
        ({"x": entry(), "y": entry(start=4, stop=12)}, b"123456789012", "'y' begins at byte 4"),
        ({"x": entry(shape=(3,))}, b"12345678", r"'x' has 8 bytes, but \[3\] values of F32 take 12"),
        ({"x": entry(dtype="F4")}, b"12345678", "'x' is stored as 'F4'"),
        ({"x": entry(dtype=None)}, b"12345678", "'x' is stored as None"),
        ({"x": entry(shape=(-2, -1))}, b"12345678", "expected whole numbers"),
        ({"x": entry(shape=(True,), dtype="I8", stop=1)}, b"1", "expected whole numbers"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, b"12345678", "expected whole numbers"),
        ({"x": {"dtype": "F32"}}, b"", "expected whole numbers"),
        ({"x": 3}, b"", "expected an object"),
        ([], b"", "no JSON object"),
        (b"{", b"", "damaged header"),
        (b"\xff\xfe", b"", "damaged header"),
        (b"[" * 100_000, b"", "damaged header"),
        (b'{"x": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "x": 1}', b"", "'x' stands in it twice"),
    ],
)
def test_damaged_headers_name_file_and_tensor(tmp_path: Path, header: object, data: bytes, says: str):
    path = write_raw(tmp_path / SINGLE, header, data)
    with pytest.raises(WeightsError, match=says) as error:
        open_checkpoint(tmp_path)
    assert str(path) in str(error.value)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path):
    write_raw(tmp_path / SINGLE, {"__metadata__": {"format": "pt"}})
    with pytest.raises(WeightsError, match="holds no tensor at all"):
        open_checkpoint(tmp_path)


def test_a_huge_header_is_not_read(tmp_path: Path):
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        open_checkpoint(tmp_path)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, len(save(TENSORS)) - 1))
def test_every_truncation_is_found(tmp_path_factory: pytest.TempPathFactory, length: int):
    path = tmp_path_factory.mktemp("cut") / SINGLE
    path.write_bytes(save(TENSORS)[:length])
    with pytest.raises(WeightsError):
        read_header(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(save(TENSORS)) - 33), st.binary(min_size=1, max_size=3))
def test_a_damaged_header_is_an_error_or_reads_whole(
    tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes
):
    """Random bytes in a header never give another exception than `WeightsError`, nor a range outside the file."""
    raw = bytearray(save(TENSORS))
    raw[place : place + len(noise)] = noise
    path = tmp_path_factory.mktemp("noise") / SINGLE
    path.write_bytes(bytes(raw))
    try:
        tensors = read_header(path)
    except WeightsError:
        return
    assert sum(t.size_bytes for t in tensors.values()) == 32
