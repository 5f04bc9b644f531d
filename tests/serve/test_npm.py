"""OpenAI's client for JavaScript asks a real server. `make .venv/ready-npm` installs it; CI does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.prefix) / "npm"


@pytest.fixture(scope="module")
def said(served, tmp_path_factory):
    """What the script tells of its answers."""
    assert (INSTALLED / "node_modules/openai").is_dir(), "run `make .venv/ready-npm` first"
    folder = tmp_path_factory.mktemp("npm")
    shutil.copy(ROOT / "tests/serve/npm/client.mjs", folder)
    (folder / "node_modules").symlink_to(INSTALLED / "node_modules")
    command = ["node", "client.mjs", f"{served[1]}/v1", "foveal-nano", str(ROOT / "examples/scene.png")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_texts_and_streams(said, http):
    asked = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
    own = http.post("/v1/chat/completions", json=asked).json()
    assert said["text"]["content"] == said["stream"]["content"] == own["choices"][0]["message"]["content"]
    assert said["text"]["end"] == said["stream"]["end"] == "stop"
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert all(said[kind]["usage"][name] == own["usage"][name] for kind in ("text", "stream") for name in counts)
    assert said["models"] == ["foveal-nano"]


@pytest.mark.slow
def test_pictures(said):
    (medium,) = said["image"]["media"]
    assert medium["original_size"] == [588, 420]
    assert said["image"]["content"]


@pytest.mark.slow
def test_forms_and_tools(said):
    for value in (said["schema"], said["tools"]["arguments"], said["streamed_tools"]["arguments"]):
        assert value["colour"] in ("red", "blue")
        assert 0 <= value["count"] <= 99
    assert said["tools"]["name"] == said["streamed_tools"]["name"] == "paint"
    assert said["tools"]["end"] == said["streamed_tools"]["end"] == "tool_calls"
    assert said["tools"]["after"] in ("stop", "length")


@pytest.mark.slow
def test_errors_are_those_of_the_client(said):
    errors = said["errors"]
    assert errors["model"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert errors["field"]["kind"] == "BadRequestError" and errors["field"]["param"] == "max_pixel"
    assert errors["long"]["code"] == "context_length_exceeded"
    assert errors["embeddings"]["status"] == 400
