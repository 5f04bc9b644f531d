"""`locate`: a folder here, the cache, or the hub; each failure says where it looked."""

import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from foveal.core.errors import HubError
from foveal.weights.hub import PATTERNS, locate

MODEL = "Qwen/Qwen2-VL-2B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_an_existing_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path
    (tmp_path / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/owner") == tmp_path / "owner"


def test_a_folder_has_no_revision(tmp_path: Path):
    with pytest.raises(HubError, match="has no revision 'main'"):
        locate(tmp_path, revision="main")


@pytest.mark.parametrize("name", ["nano", "", "./a/b", "/absent/folder", "a/b/c", "~/x", "../x", "a\\b", "https://x/y"])
def test_what_is_neither_folder_nor_hub_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **_: pytest.fail("asked the hub"))
    with pytest.raises(HubError, match="pass"):
        locate(name)


def test_a_model_is_named_by_a_text_or_a_path():
    with pytest.raises(HubError, match="the model is 5; pass a folder"):
        locate(5)  # type: ignore[arg-type]


def test_a_path_object_is_never_sent_to_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **_: pytest.fail("asked the hub"))
    with pytest.raises(HubError, match="is no folder here"):
        locate(Path(MODEL))


def test_a_file_is_not_a_folder(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(HubError, match="is a file; pass the checkpoint's folder"):
        locate(tmp_path / "model.safetensors")


def test_a_hub_name_is_fetched_without_pickles_and_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[dict[str, Any]] = []

    def download(**options: Any) -> str:
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(MODEL, revision="v1") == tmp_path
    assert asked == [{"repo_id": MODEL, "revision": "v1", "allow_patterns": list(PATTERNS)}]
    assert not [p for p in PATTERNS if p.endswith((".bin", ".pt", ".py"))]


def test_planning_fetches_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda **o: asked.extend(o["allow_patterns"]) or str(tmp_path)
    )
    locate(MODEL, weights=False)
    assert "*.json" in asked
    assert "*.safetensors" not in asked


def test_who_converts_may_ask_for_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda **o: asked.extend(o["allow_patterns"]) or str(tmp_path)
    )
    locate(MODEL, also=("*.bin",))
    assert asked == [*PATTERNS, "*.bin"]


class Answer:
    """As much of an HTTP answer as the hub's errors look at."""

    headers = MappingProxyType({})
    request = None
    status_code = 404
    url = ""


def hub_error(kind: type[Exception]) -> Exception:
    return kind("long text\nof many lines", response=Answer())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (hub_error(errors.GatedRepoError), "only after its terms were accepted"),
        (hub_error(errors.RepositoryNotFoundError), "no such model, or it is private"),
        (hub_error(errors.RevisionNotFoundError), "this revision does not"),
        (hub_error(errors.HfHubHTTPError), r"could not be fetched \(long text\)"),
        (errors.LocalEntryNotFoundError("no connection"), r"could not be fetched \(no connection\)"),
        (TimeoutError(), r"could not be fetched \(TimeoutError\)"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("odd"), "odd"),
    ],
)
def test_every_failure_is_a_hub_error_in_one_line(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch):
    def fail(**_: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(HubError, match=says) as caught:
        locate(MODEL, revision="v1")
    assert str(caught.value).startswith(f"{MODEL} at revision 'v1' is no folder here; ")
    assert "\n" not in str(caught.value)


def offline(cache: Path, name: str) -> subprocess.CompletedProcess[str]:
    code = f"""
from foveal.core.errors import HubError
from foveal.weights.hub import locate
try:
    print(locate({name!r}))
except HubError as error:
    print("HubError:", error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_offline_takes_from_the_cache_only(tmp_path: Path):
    repository = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert offline(tmp_path, MODEL).stdout.strip() == str(snapshot)
    said = offline(tmp_path, "Qwen/Other").stdout
    assert said.startswith("HubError: Qwen/Other is no folder here; it is not in the hub cache, and HF_HUB_OFFLINE")
