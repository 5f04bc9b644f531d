"""The command that hands a server's settings over to vLLM; its flags were compared with vLLM 0.32's own parser."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from foveal.cli import serve
from foveal.cli.main import Parser
from foveal.core.errors import ConfigError
from foveal.serve.handover import NOWHERE, handover
from foveal.serve.options import ServeOptions

PUBLISHED = Path(__file__).parents[1] / "data_files" / "published"


def served_commands() -> list[list[str]]:
    """Arguments of `foveal serve` in the pages on serving and in the container's file."""
    root = Path(__file__).parents[2]
    text = "\n".join((root / name).read_text() for name in ("docs/serve.md", "docs/deploy.md", "README.md"))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    found = [
        line.split(" foveal " if "docker run" in line else "foveal serve", 1)[1] for line in lines if is_command(line)
    ]
    (command,) = [line[4:] for line in (root / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    return [*(shlex.split(line, comments=True) for line in found), json.loads(command)]


def is_command(line: str) -> bool:
    return line.startswith(("foveal serve", "taskset")) or (line.startswith("docker run") and " foveal " in line)


def flags(command: tuple[str, ...]) -> dict[str, list[str]]:
    """Flags with their values."""
    found: dict[str, list[str]] = {}
    for word in command[3:]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


def test_limits_are_carried_over(tmp_path: Path) -> None:
    options = ServeOptions(
        host="0.0.0.0", port=9000, api_keys=("secret",), served_model_name="eyes", max_model_len=700, max_num_seqs=5,
        max_num_batched_tokens=512, allowed_media_domains=("a.example", "b.example"),
        allowed_local_media_path=tmp_path, limit_mm_per_prompt={"image": 3, "video": 0}, max_pixels=401_408,
        dtype="bfloat16", adapter="some/adapter", cache_bytes=2**30, prefix_cache=False, speculate=5,
    )  # fmt: skip
    made = handover(options)
    assert made.command[:2] == ("vllm", "serve") and (Path(made.command[2]) / "config.json").is_file()
    found = flags(made.command)
    assert json.loads(found.pop("--limit-mm-per-prompt")[0]) == {"image": 3, "video": 0}
    assert json.loads(found.pop("--mm-processor-kwargs")[0]) == {"max_pixels": 401_408}
    guesses = json.loads(found.pop("--speculative-config")[0])
    assert guesses == {
        "method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4
    }  # fmt: skip
    assert found == {
        "--host": ["0.0.0.0"], "--port": ["9000"], "--served-model-name": ["eyes"], "--max-num-seqs": ["5"],
        "--max-num-batched-tokens": ["512"], "--max-model-len": ["700"], "--dtype": ["bfloat16"],
        "--allowed-media-domains": ["a.example", "b.example"], "--allowed-local-media-path": [str(tmp_path.resolve())],
        "--kv-cache-memory-bytes": [str(2**30)], "--no-enable-prefix-caching": [], "--enable-lora": [],
        "--lora-modules": ["adapter=some/adapter"],
    }  # fmt: skip
    assert "secret" not in " ".join(made.command) and made.environment == {"VLLM_API_KEY": "secret"}


def test_nothing_is_fetched_unless_allowed() -> None:
    """vLLM takes no list for every host; an empty one of ours is none."""
    assert flags(handover(ServeOptions()).command)["--allowed-media-domains"] == [NOWHERE]


def test_limits_without_a_like_are_named() -> None:
    lost = " ".join(handover(ServeOptions(max_waiting=7, api_keys=("k",))).lost)
    assert "7" in lost and "keys on all routes" in lost and "33,554,432 bytes" in lost


@pytest.mark.parametrize(
    ("family", "told"),
    [("qwen2_5_vl", []), ("qwen3_vl", []), ("deepseek_vl2", ["--hf-overrides"]), ("clip", ["--runner"])],
)
def test_families_that_vllm_tells_by_more_than_their_files(
    family: str, told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    described = SimpleNamespace(family=SimpleNamespace(name=family, context=lambda _: 4096), config=None)
    monkeypatch.setattr("foveal.serve.handover.describe", lambda _: described)
    found = flags(handover(ServeOptions(model=str(tmp_path))).command)
    assert [f for f in found if f in ("--hf-overrides", "--runner")] == told
    assert ("--mm-processor-kwargs" in found) == family.startswith("qwen")


def test_families_that_vllm_does_not_serve_are_refused() -> None:
    with pytest.raises(ConfigError, match="vLLM does not serve vit"):
        handover(ServeOptions(model=str(PUBLISHED / "vit-base-patch16-224")))


def test_what_vllm_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="one --api-key"):
        handover(ServeOptions(api_keys=("a", "b")))
    for setting, value in {"quantize": "int4", "device": "cpu", "threads": 2, "vision_cache_bytes": 0}.items():
        with pytest.raises(ConfigError, match=f"--{setting.replace('_', '-')} is given with --engine vllm"):
            handover(ServeOptions(**{setting: value}))
    with pytest.raises(ConfigError, match="takes up to"):
        handover(ServeOptions(max_model_len=10**9))


def test_it_becomes_vllm(tmp_path: Path) -> None:
    """With a program of that name in the path, which tells what it was given."""
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\nimport os, sys\nprint(os.environ['VLLM_API_KEY'], *sys.argv[1:3])\n")
    program.chmod(0o755)
    code = (
        "from foveal.serve.handover import handover, run\nfrom foveal.serve.options import ServeOptions\n"
        "run(handover(ServeOptions(api_keys=('k',))))"
    )
    path = os.pathsep.join(str(Path(__file__).parents[2] / part) for part in ("src", "."))
    told = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("k serve ")
    told["PATH"] = str(tmp_path / "nothing")
    gone = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=False)
    assert "vLLM is not installed here" in gone.stderr


@pytest.mark.parametrize("words", served_commands(), ids=" ".join)
def test_commands_of_the_pages_and_the_container_are_understood(words: list[str]) -> None:
    """Every flag that they show is one that `foveal serve` has, and nothing is taken for the model by mistake."""
    parser = Parser(allow_abbrev=False)
    serve.configure(parser)
    given = parser.parse_args(words)
    assert given.model is None or not given.model.startswith(("/health", "/ready"))
    assert all(path.startswith("/") for path in given.open_path)
