"""The documentation is true: links lead somewhere, what the README shows runs, public names say what they are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.docs import ROOT, check

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
HUB = re.compile(r"foveal\.load\(\"[\w-]+/|foveal \w+ .*\b[A-Z][\w-]+/[\w.-]+")


def test_links_readme_and_docstrings():
    problems = [*check.broken_links(ROOT), *check.long_readme(ROOT), *check.missing_docstrings(ROOT)]
    assert not problems, "\n".join(problems)


def plant(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def test_a_broken_link_is_found(tmp_path: Path):
    root = plant(
        tmp_path,
        {
            "README.md": "# A b\n[x](docs/x.md) [y](docs/y.md#one-two) [z](#a-b) [web](https://x.org)\n"
            "```\n[code](nothing)\n```\n[out](../x.md) [no](#none)\n",
            "docs/y.md": "# One, two\n",
        },
    )
    assert [p.split(": ")[1] for p in check.broken_links(root)] == [
        "the link docs/x.md leads to no file of the repository.",
        "the link ../x.md leads to no file of the repository.",
        "README.md has no heading for #none.",
    ]


def test_a_long_readme_and_missing_docstrings_are_found(tmp_path: Path):
    body = "\n".join(f"    x = {n}" for n in range(5))
    root = plant(
        tmp_path,
        {
            "README.md": "x\n" * 100,
            "src/p/a.py": f"def long():\n{body}\n",
            "src/p/b.py": f'"""Doc."""\n\nclass C:\n    def _hidden(self):\n{body}\n'.replace("    x", "        x"),
            "src/p/cli/v.py": f'"""Doc."""\n\ndef run():\n{body}\n',
            "src/p/__init__.py": "",
        },
    )
    assert list(check.long_readme(root)) == ["README.md has 100 lines, under 100 are allowed."]
    assert list(check.missing_docstrings(root)) == [
        "src/p/a.py: the module has no docstring.",
        "src/p/a.py:1: long has no docstring.",
        "src/p/b.py:3: C has no docstring.",
    ]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's files in a new folder, as a clone would have them."""
    folder = tmp_path / "foveal"
    for path in check.tracked(ROOT):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


def runnable(language: str, block: str) -> list[str]:
    """What of a block can run without the hub: whole Python blocks, shell commands one by one."""
    if language == "python":
        return [] if re.search(r"^[^#\n]*" + HUB.pattern, block, re.MULTILINE) else [block]
    commands = block.replace("\\\n", " ").splitlines()
    return [c for c in commands if c.strip() and not c.startswith("#") and not HUB.search(c.split("#")[0])]


CASES = [(language, code) for language, block in BLOCKS for code in runnable(language, block)]


def run(language: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "HF_HUB_OFFLINE": "1",
    }
    command = (
        [sys.executable, "-W", "error", "-c", code]
        if language == "python"
        else ["bash", "-euo", "pipefail", "-c", code]
    )
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )


@pytest.mark.parametrize(("language", "code"), [c for c in CASES if not c[1].startswith("make")])
def test_what_the_readme_shows_runs(copy: Path, language: str, code: str):
    result = run(language, code, copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()


@pytest.mark.slow
def test_make_demo_runs_in_a_fresh_clone(copy: Path):
    """Sets up its own environment, answers, finds the object, and writes the picture."""
    assert ("bash", "make demo") in [(language, code.split("#")[0].strip()) for language, code in CASES]
    result = run("bash", "make demo", copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\(\d+, \d+\) to \(\d+, \d+\) px", result.stdout), result.stdout
    assert (copy / "out/found.png").stat().st_size > 1000
    again = run("bash", "make demo", copy)
    assert "pip install" not in again.stdout


def test_the_readme_has_commands_that_run():
    assert {language for language, _ in CASES} == {"bash", "python"}
    assert sum(code.startswith("foveal ") for _, code in CASES) >= 1
