"""`foveal inspect`: everything a folder says of itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.cli.inspect import _families
from foveal.cli.main import main


def test_the_page(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["total", "210,304", "841", "kB", "421", "kB", "421", "kB"] in lines
    assert "stored: 841 kB of F32, 82 tensors in 1 file" in out
    assert "  kv_heads = 2\n" in out
    assert "  max_px = 12845056\n" in out
    assert out.endswith(
        "  <|im_start|>system\n  You are a helpful assistant.<|im_end|>\n"
        "  <|im_start|>user\n  <|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n"
        "  <|im_start|>assistant\n  A bicycle.<|im_end|>\n"
        "  <|im_start|>user\n  Where is it?<|im_end|>\n  <|im_start|>assistant\n"
    )


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "qwen2_vl"
    assert told["parameters"] == {"vision": 63_264, "adapter": 22_768, "language": 124_272, "total": 210_304}
    assert told["memory_bytes"] == {"float32": 841_216, "bfloat16": 420_608, "float16": 420_608}
    assert told["stored"] == {"dtype": "F32", "bytes": 841_216, "tensors": 82, "files": 1}
    assert told["config"]["language"]["heads"] == 4
    assert told["processing"]["normalize"]["mean"][0] == 0.48145466
    assert told["context_tokens"] == 4096


def test_generation_defaults_are_those_of_the_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    stated = {"do_sample": True, "temperature": 0.25, "top_k": 7, "eos_token_id": [5, 3]}
    (copy / "generation_config.json").write_text(json.dumps(stated))
    assert main(["inspect", str(copy), "--json"]) == 0
    generation = json.loads(capsys.readouterr().out)["generation"]
    assert generation["stated"] == stated
    assert generation["stop_ids"] == [3, 5]
    defaults = generation["defaults"]
    assert (defaults["temperature"], defaults["top_k"], defaults["top_p"]) == (0.25, 7, 1.0)


def test_a_folder_without_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    assert main(["inspect", str(copy)]) == 0
    assert "stored: no weights in this folder" in capsys.readouterr().out


PUBLISHED = Path(__file__).parents[1] / "data_files/published"


@pytest.mark.parametrize("name", sorted(p.parent.name for p in PUBLISHED.glob("*/config.json")))
def test_published_configurations_alone(name: str, capsys: pytest.CaptureFixture[str]):
    """Without vocabulary and weights: parts and numbers are told, the chat format is not."""
    assert main(["inspect", str(PUBLISHED / name)]) == 0
    page = capsys.readouterr().out
    assert "stored: no weights" in page
    assert ("vocabulary: none" in page) == (not name.startswith("vit"))
    assert main(["inspect", str(PUBLISHED / name), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["special_tokens"] is None or name.startswith("vit")
    sizes = (family["sizes"] for family in _families().values())
    assert told["parameters"] in [parts for known in sizes for parts in known.values()]


def test_an_index_without_its_files_is_no_weights(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["inspect", str(copy)]) == 0
    assert "stored: no weights in this folder" in capsys.readouterr().out


def test_damaged_weights_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert main(["inspect", str(copy)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.safetensors" in err
    assert err.count("\n") == 1


def test_what_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["inspect", "nano2"]) == 2
    assert "'nano2' is no folder here" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--deep"]) == 2
    assert "unknown option --deep" in capsys.readouterr().err


def test_torch_is_not_needed(folder: Path):
    code = f"""
import sys
from foveal.cli.inspect import _families
from foveal.cli.main import main
main(["inspect", {str(folder)!r}])
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_family_with_its_sizes(capsys: pytest.CaptureFixture[str]):
    from foveal.families.describe import families

    assert main(["inspect", "--families"]) == 0
    page = capsys.readouterr().out
    assert main(["inspect", "--families", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == families().keys()
    for name, family in families().items():
        assert told[name]["sizes"].keys() == family.sizes.keys()
        assert f"\n{name} (model_type " in f"\n{page}"
    assert told["qwen2_vl"]["sizes"]["7b"]["total"] == 8_291_375_616
    assert told["vit"]["layouts"] == ["official", "bare", "big_vision"]
    words = [line.split() for line in page.splitlines()]
    assert ["base-patch16-224", "86,567,656", "85,798,656", "769,000", "-"] in words
    assert ["base-patch16-224", "203,155,970", "92,884,224", "110,271,744", "2"] in words
    assert main(["inspect", "some/model", "--families"]) == 2
    assert "drop it, or drop 'some/model'" in capsys.readouterr().err


def test_families_are_listed_without_torch():
    code = """
import sys
from foveal.cli.inspect import _families
from foveal.cli.main import main
main(["inspect", "--families"])
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
