"""`foveal match`: labels for pictures and folders of pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

import foveal
from foveal.cli.main import main
from tests.helpers import checkpoints, clip
from tests.helpers.pictures import odd_pictures

LABELS = ["cat", "dog", "red bicycle"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: Any) -> Path:
    return clip.write(clip.oracle(seed=6), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def album(tmp_path_factory: Any) -> Path:
    """Three pictures, one of them in a folder below, and a text."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "below").mkdir()
    for name, picture in zip(("b.png", "a.jpg", "below/c.PNG"), odd_pictures()[3:6], strict=True):
        picture.save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_table(clip_folder: Path, album: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["match", str(clip_folder), str(album), "--labels", *LABELS, "--top", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = [album / "a.jpg", album / "b.png", album / "below/c.PNG"]
    expected = foveal.load(clip_folder, device="cpu").classify([str(f) for f in files], LABELS)
    lines = out.splitlines()
    assert len(lines) == 3
    for line, file, match in zip(lines, files, expected, strict=True):
        best = sorted(match.probabilities.items(), key=lambda pair: -pair[1])[:2]
        assert line.split() == f"{file} {' '.join(f'{label} {share:.1%}' for label, share in best)}".split()
        assert best[0][0] == match.label


def test_json_with_templates(clip_folder: Path, album: Path, capsys: pytest.CaptureFixture[str]):
    templates = ["a {}", "the {} on the left"]
    picture = str(album / "b.png")
    words = ["match", str(clip_folder), picture, picture, "--labels", *LABELS, "--template", *templates, "--json"]
    assert main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    (expected,) = foveal.load(clip_folder, device="cpu").classify(picture, LABELS, templates=templates)
    assert told["image"] == picture
    assert told["label"] == expected.label
    assert told["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_long_work_shows_a_bar(
    clip_folder: Path, album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["match", str(clip_folder), str(album), "--labels", *LABELS, "--batch", "2"]) == 0
    err = capsys.readouterr().err
    assert "] 2 of 3 pictures" in err
    assert err.endswith("[" + "#" * 24 + "] 3 of 3 pictures\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{clip}", "{album}/none.png", "--labels", "a"], "is neither a picture nor a folder"),
        (["{clip}", "{empty}", "--labels", "a"], "holds no picture"),
        (["{clip}", "{album}", "--labels", "a", "--top", "0"], "--top is 0"),
        (["{clip}", "{album}", "--labels", "a", "--template", "no place"], "0 places for the label"),
        (["{clip}", "{album}"], "--labels"),
        (["{clip}", "{album}/notes.txt", "--labels", "a"], "a text file"),
        (["{vlm}", "{album}", "--labels", "a"], "needs CLIP or SigLIP"),
    ],
)
def test_mistakes_are_named(
    clip_folder: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
):
    (tmp_path / "empty").mkdir()
    if "{vlm}" in words:
        checkpoints.write(checkpoints.oracle(), tmp_path / "vlm")
    places = {"clip": clip_folder, "album": album, "empty": tmp_path / "empty", "vlm": tmp_path / "vlm"}
    assert main(["match", *(w.format(**places) for w in words)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_inspect_shows_both_towers(clip_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(clip_folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "clip"
    assert set(told["parameters"]) == {"vision", "text", "scale", "total"}
    assert main(["inspect", str(clip_folder)]) == 0
    assert "side_px = 32" in capsys.readouterr().out
