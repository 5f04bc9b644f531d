"""`save` and `replacing_folder`: the published layout, all of it or nothing."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from foveal.core.errors import WeightsError
from foveal.weights import write
from foveal.weights.checkpoint import open_checkpoint
from foveal.weights.names import NameMap
from foveal.weights.read import fill
from foveal.weights.write import replacing_folder, save

Make = Callable[..., torch.nn.Module]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_one_file_has_published_names_and_metadata(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    save(net, tmp_path, names)
    assert files(tmp_path) == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("inner.layers.1.fc.weight"), net.layers[1].weight)
    assert "computed" not in str(open_checkpoint(tmp_path).tensors)


def test_shards_have_the_official_names_and_an_index(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    save(net, tmp_path, names, shard_bytes=300)
    shards = [f for f in files(tmp_path) if f != "model.safetensors.index.json"]
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in net.state_dict().values())}
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert set(index["weight_map"].values()) == set(shards)
    for shard in shards:
        sizes = [t.nbytes for t in load_file(tmp_path / shard).values()]
        assert sum(sizes) <= 300 or len(sizes) == 1


def test_dtype_is_that_of_the_files_only(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    save(net, tmp_path, names, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["embed_tokens.weight"].dtype == torch.bfloat16
    assert stored["inner.steps"].dtype == torch.int64
    assert net.embed.weight.dtype == torch.float32


@pytest.mark.parametrize("shard_bytes", [10**9, 300])
def test_files_are_as_open_as_any_other(tmp_path: Path, names: NameMap, make_net: Make, shard_bytes: int):
    (tmp_path / "plain").write_text("")
    save(make_net(), tmp_path / "net", names, shard_bytes=shard_bytes)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "plain", *(tmp_path / "net").iterdir()]}
    assert len(modes) == 1


def test_strided_weights_are_written_in_order(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    net.layers[0].weight = torch.nn.Parameter(net.layers[0].weight.detach().T)
    save(net, tmp_path, names)
    stored = load_file(tmp_path / "model.safetensors")["inner.layers.0.fc.weight"]
    assert torch.equal(stored, net.layers[0].weight)


def test_a_mapped_model_can_be_saved_over_its_own_files(tmp_path: Path, names: NameMap, make_net: Make):
    with replacing_folder(tmp_path / "net") as temporary:
        save(make_net(), temporary, names, shard_bytes=300)
    net = make_net(meta=True)
    fill(net, open_checkpoint(tmp_path / "net"), names)
    with torch.no_grad():
        net.embed.weight.mul_(2)
    with replacing_folder(tmp_path / "net") as temporary:
        save(net, temporary, names)
    assert files(tmp_path / "net") == ["model.safetensors"]
    assert torch.equal(net.layers[1].weight, make_net().layers[1].weight)
    again = make_net(meta=True)
    fill(again, open_checkpoint(tmp_path / "net"), names)
    assert torch.equal(again.embed.weight, make_net().embed.weight * 2)


def test_a_nameless_tensor_is_refused(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    net.extra = torch.nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"2 tensors have no published name in net.map \(extra.weight, extra.bias\)"):
        save(net, tmp_path / "net", names)
    assert not (tmp_path / "net").exists()


def test_an_empty_model_is_refused(tmp_path: Path, names: NameMap, make_net: Make):
    with pytest.raises(WeightsError, match="have no values yet"):
        save(make_net(meta=True), tmp_path, names)
    with pytest.raises(WeightsError, match="no tensor to save"):
        save(torch.nn.Module(), tmp_path, names)


def test_a_tensor_under_two_names_is_refused(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    net.head.weight = net.embed.weight
    with pytest.raises(WeightsError, match=r"head.weight and embed.weight are one tensor"):
        save(net, tmp_path, names)


def test_a_value_that_half_precision_cannot_hold_is_refused(tmp_path: Path, names: NameMap, make_net: Make):
    net = make_net()
    with torch.no_grad():
        net.embed.weight[0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"embed_tokens.weight has a value that float16 cannot hold"):
        save(net, tmp_path, names, dtype=torch.float16)
    assert files(tmp_path) == []


def test_options_are_checked(tmp_path: Path, names: NameMap, make_net: Make):
    with pytest.raises(WeightsError, match="shard_bytes is 0"):
        save(make_net(), tmp_path, names, shard_bytes=0)


def test_tensors_are_not_written_over(tmp_path: Path, names: NameMap, make_net: Make):
    save(make_net(), tmp_path, names)
    with pytest.raises(WeightsError, match=r"holds model\.safetensors already"):
        save(make_net(), tmp_path, names, shard_bytes=300)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, names: NameMap, make_net: Make, monkeypatch: pytest.MonkeyPatch, fails_at: int
):
    calls = 0
    real = write.save_file

    def full(*args: object, **options: object) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(WeightsError, match=r"cannot be written: .*No space left"):
        save(make_net(), tmp_path / "net", names, shard_bytes=200)
    assert files(tmp_path / "net") == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, names: NameMap, make_net: Make):
    target = tmp_path / "deep" / "net"
    with pytest.raises(KeyboardInterrupt), replacing_folder(target) as temporary:
        save(make_net(), temporary, names)
        assert not target.exists()
        raise KeyboardInterrupt
    assert files(tmp_path / "deep") == []
    with replacing_folder(target) as temporary:
        (temporary / "config.json").write_text("{}")
    assert files(tmp_path / "deep") == ["net"]
    assert files(target) == ["config.json"]


def test_the_folder_is_as_open_as_any(tmp_path: Path):
    with replacing_folder(tmp_path / "net"):
        pass
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_earlier_checkpoint_is_replaced_as_a_whole(tmp_path: Path, names: NameMap, make_net: Make):
    for shard_bytes in (200, 10**9):
        with replacing_folder(tmp_path / "net") as temporary:
            (temporary / "config.json").write_text("{}")
            save(make_net(), temporary, names, shard_bytes=shard_bytes)
    assert files(tmp_path / "net") == ["config.json", "model.safetensors"]
    assert files(tmp_path) == ["net"]


def test_an_earlier_checkpoint_survives_a_failure(tmp_path: Path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text("old")
    with pytest.raises(WeightsError), replacing_folder(tmp_path / "net") as temporary:
        (temporary / "config.json").write_text("new")
        raise WeightsError("something failed")
    assert (tmp_path / "net/config.json").read_text() == "old"
    assert files(tmp_path) == ["net"]


def test_an_earlier_checkpoint_survives_a_failed_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text("old")
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(WeightsError, match="Permission denied"), replacing_folder(tmp_path / "net") as temporary:
        (temporary / "config.json").write_text("new")
    assert (tmp_path / "net/config.json").read_text() == "old"
    assert files(tmp_path) == ["net"]


@pytest.mark.parametrize("foreign", ["notes.txt", "README.md", "runs", "model.py", ".git"])
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, foreign: str):
    target = tmp_path / "net"
    target.mkdir()
    (target / "config.json").touch()
    (target / foreign).mkdir() if foreign in {"runs", ".git"} else (target / foreign).touch()
    refusal = pytest.raises(WeightsError, match=f"holds {foreign}, which is no part of a checkpoint")
    with refusal, replacing_folder(target):
        pytest.fail("let in")
    assert foreign in files(target)


def test_files_and_links_are_not_folders(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(WeightsError, match="is not a plain folder"), replacing_folder(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"
