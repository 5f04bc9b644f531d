"""`foveal plan`: figures, advice, JSON, and one clear line for whatever a user gets wrong."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.cli.main import main

PUBLISHED = Path(__file__).parents[1] / "data_files/published"
TWO_B = str(PUBLISHED / "Qwen2-VL-2B-Instruct")
SEVEN_B = str(PUBLISHED / "Qwen2-VL-7B-Instruct")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_picture(capsys: pytest.CaptureFixture[str]):
    out = told(capsys, TWO_B, "--image", "4032x3024", "--image", "640x480", "--text", "100")
    lines = [line.split() for line in out.splitlines()]
    assert "image 4032 x 3024 4032 x 3024 15,552".split() in lines
    assert "image 640 x 480 644 x 476 391".split() in lines
    assert "prompt 16,047 tokens 15,943 visual, 4 markers, 100 text".split() in lines
    assert "weights 4.42 GB bfloat16".split() in lines
    assert "fits" in out


def test_a_video_that_is_too_long_gets_advice(capsys: pytest.CaptureFixture[str]):
    out = told(capsys, SEVEN_B, "--video", "1920x1080@60")
    assert "1008 x 560, 120 frames" in out
    assert "does not fit" in out
    assert "--max-pixels" in out
    max_px = out.split("--max-pixels ")[1].split()[0]
    assert "does not fit" not in told(capsys, SEVEN_B, "--video", "1920x1080@60", "--max-pixels", max_px)


def test_memory_gives_the_fitting_size(capsys: pytest.CaptureFixture[str]):
    found = json.loads(told(capsys, TWO_B, "--image", "4032x3024", "--memory", "6", "--json"))
    assert found["memory_bytes"] == 6 * 1024**3
    assert found["peak_bytes"] > found["memory_bytes"] >= found["fit"]["peak_bytes"]
    again = json.loads(
        told(capsys, TWO_B, "--image", "4032x3024", "--max-pixels", str(found["fit"]["max_pixels"]), "--json")
    )
    assert again["peak_bytes"] == found["fit"]["peak_bytes"]
    assert "fit" not in again


def test_too_little_memory_is_said(capsys: pytest.CaptureFixture[str]):
    out = told(capsys, TWO_B, "--image", "640x480", "--memory", "4")
    assert "No max_pixels fits 4 GiB and the context: the weights alone take 4.42 GB." in out
    assert json.loads(told(capsys, TWO_B, "--image", "640x480", "--memory", "4", "--json"))["fit"] is None


def test_enough_memory_is_said(capsys: pytest.CaptureFixture[str]):
    assert "It fits 24 GiB and the context as it is." in told(capsys, TWO_B, "--image", "640x480", "--memory", "24")


def test_json(capsys: pytest.CaptureFixture[str]):
    words = [TWO_B, "--image", "300x200", "--video", "640x480@4:25", "--fps", "1", "--dtype", "float32", "--json"]
    found = json.loads(told(capsys, *words))
    assert [(m["kind"], m["frames"], m["tokens"]) for m in found["media"]] == [("image", 1, 77), ("video", 4, 782)]
    assert found["media"][0]["processed_size"] == [308, 196]
    assert found["prompt_tokens"] == 77 + 782 + 4
    assert found["weights_bytes"] == 4 * 2_208_985_600


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--image", "40x"], "--image 40x: expected width x height"),
        (["--image", "0x40"], "--image 0x40: expected width x height"),
        (["--image", "-3x40"], "--image"),
        (["--image", "1x300"], "side ratio above 200"),
        (["--video", "640x480"], "--video 640x480: expected WxH@SECONDS"),
        (["--video", "640x480@0"], "--video 640x480@0: expected WxH@SECONDS"),
        (["--video", "640x480@5:0"], "expected WxH@SECONDS"),
        (["--memory", "0"], "--memory is 0.0"),
        (["--memory", "nan"], "--memory is nan"),
        (["--memory", "much"], "--memory"),
        (["--dtype", "int3"], "dtype 'int3' is unknown"),
        (["--text", "-1"], "text_tokens is -1"),
        (["--max-pixels", "10", "--image", "30x30"], "min_px=3136 is above max_px=10"),
        (["--fps", "1", "--nframes", "4"], "give one"),
        (["--pixels", "3"], "unknown option --pixels; did you mean"),
    ],
)
def test_what_a_user_gets_wrong(capsys: pytest.CaptureFixture[str], words: list[str], says: str):
    assert main(["plan", TWO_B, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("foveal: ")
    assert says in err
    assert err.count("\n") == 1


def test_a_folder_that_holds_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["plan", str(tmp_path), "--image", "30x30"]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vll"}')
    assert main(["plan", str(tmp_path), "--image", "30x30"]) == 2
    assert "unknown model_type 'qwen2_vll'; did you mean 'qwen2_vl' or " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["plan", "--help"], ["plan", TWO_B, "--image", "640x480"]]
)
def test_what_needs_no_model_is_quick_and_without_torch(words: list[str]):
    """Processor time, which other programs on the machine do not change: under 0.5 s."""
    code = f"""
import sys
from foveal.cli.main import main
status = main({words!r})
print("torch" in sys.modules, file=sys.stderr)
sys.exit(status)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.stderr == "False\n"
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5
