"""The `foveal` command itself: help, wrong names, interruption, a reader that leaves, exit statuses."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveal import __version__
from foveal.cli.main import main, verbs

TWO_B = str(Path(__file__).parents[1] / "data_files/published/Qwen2-VL-2B-Instruct")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {"ask", "inspect", "plan"} <= set(verbs())
    for verb in verbs():
        assert f"  {verb} " in out


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: foveal {verb}")
    assert "examples:" in out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"foveal {__version__}\n"


@pytest.mark.parametrize("word", ["plann", "main", "output", "../plan", "", "-x"])
def test_an_unknown_command_is_one_line(word: str, capsys: pytest.CaptureFixture[str]):
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"foveal: unknown command {word!r}; ")
    assert err.count("\n") == 1


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from foveal.cli import plan

    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "run", interrupted)
    assert main(["plan"]) == 128 + signal.SIGINT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == ""


def test_the_installed_command_leaves_with_2_and_without_traceback():
    command = Path(sys.executable).with_name("foveal")
    result = subprocess.run([command, "plan", TWO_B, "--image", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "foveal: --image x: expected width x height in pixels, such as 4032x3024.\n"


def test_a_reader_that_leaves_is_no_error():
    code = "import sys; from foveal.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "plan", TWO_B, *["--image", "640x480"] * 3000, "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout is None or process.stderr is None:
            pytest.fail("no pipes")
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
