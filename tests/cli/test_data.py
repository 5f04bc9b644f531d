"""`foveal data convert` and `foveal data doctor`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = []
    for i in range(4):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {i}."}]
        rows.append({"id": f"x{i}", "image": f"{i}.png", "conversations": turns})
    (tmp_path / "set.json").write_text(json.dumps(rows))
    return tmp_path / "set.json"


def test_convert(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = path.parent / "out.tar"
    assert main(["data", "convert", str(path), str(target), "--to", "webdataset"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == f"read {path}: llava, 4 samples\nwrote {target}: swift in webdataset, 4 media\n"
    back = path.parent / "back.json"
    assert main(["data", "convert", str(target), str(back), "--to", "llava", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["from"], told["format"], told["samples"], told["media"]) == ("sharegpt", "llava", 4, 4)
    one, other = json.loads(path.read_text()), json.loads(back.read_text())
    assert [r["conversations"] for r in one] == [r["conversations"] for r in other]
    for a, b in zip(one, other, strict=True):
        assert (path.parent / a["image"]).read_bytes() == (back.parent / b["image"]).read_bytes()


def test_doctor(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "doctor", str(path)]) == 0
    assert capsys.readouterr().out == "set: 4 samples, 4 media, 0 boxes\nnothing found\n"
    (path.parent / "1.png").unlink()
    rows = json.loads(path.read_text())
    rows[3]["note"] = 1
    path.write_text(json.dumps(rows))
    clean = path.parent / "clean.jsonl"
    assert main(["data", "doctor", str(path), "--fix", str(clean), "--max-tokens", "999"]) == 1
    out = capsys.readouterr().out
    assert "longest: " in out and "tokens for the small model inside" in out
    assert "  missing medium  error     drops it" in out and "  unknown key     warning   carries the key along" in out
    assert f"  x1 (set.json[1]): '{path.parent}/1.png' does not exist" in out or "does not exist; check the path" in out
    assert "1 error, 1 warning" in out
    assert f"wrote {clean}: 3 samples\n  dropped x1: missing medium: " in out
    assert main(["data", "doctor", str(clean), "--keep", "note"]) == 0
    capsys.readouterr()
    assert main(["data", "doctor", str(path), "--against", str(clean), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"missing medium": 1, "unknown key": 1, "leak": 3} and told["errors"] == 4
    assert told["findings"][0].keys() == {"kind", "sample", "where", "message", "severity"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "SET", "x"], "the following arguments are required: --to"),
        (["convert", "SET", "x", "--to", "lava"], "unknown format 'lava'; did you mean 'llava'"),
        (["convert", "SET", "x", "--to", "llava", "--container", "tar"], "unknown container 'tar'"),
        (["convert", "SET", "SET", "--to", "llava"], "exists; name another target"),
        (["convert", "none", "x", "--to", "llava"], "cannot be opened"),
        (["doctor", "SET", "--fix", "SET"], "exists; name another target"),
        (["doctor", "SET", "--boxes", "pixel"], "unknown space 'pixel'"),
        (["doctor", "SET", "--max-tokens", "0"], "--max-tokens is 0"),
        (["docter", "SET"], "invalid choice: 'docter'"),
    ],
)
def test_errors_are_one_line(words: list[str], message: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *(str(path) if w == "SET" else w for w in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("foveal: ") and message in err
