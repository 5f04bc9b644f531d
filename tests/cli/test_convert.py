"""`foveal convert`."""

import json

from foveal.cli.main import main
from tests.helpers import flax, vit


def test_a_conversion_says_what_it_did(tmp_path, capsys):
    source = flax.write(tmp_path / "vit.npz", flax.vit(vit.oracle()))
    assert main(["convert", str(source), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"read {source}: vit, big_vision layout, 56 tensors, " in out
    assert "the configuration was read off the shapes of the weights" in out
    assert "of BF16 in 1 file, config.json, preprocessor_config.json" in out
    assert main(["inspect", str(tmp_path / "out")]) == 0


def test_json(tmp_path, capsys):
    folder = vit.write(vit.oracle(), tmp_path / "a")
    assert main(["convert", str(folder), str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["layout"], told["dtype"]) == ("vit", "official", "F32")
    assert told["files"] == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_errors_are_one_line(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "none.npz"), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "none.npz does not exist" in err
