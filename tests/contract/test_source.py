"""What no file of the package may do, read from its syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/foveal"
TREES = {p.relative_to(SOURCE).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in SOURCE.rglob("*.py")}

PICKLE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib3", "urllib"}
URL_PARSING = {"urllib.parse"}

# Files that read or write on the disk, and what. Only processing/media.py opens what a message names.
OPENERS = {
    "core/config.py": "JSON of a checkpoint folder",
    "families/base.py": "name maps of the package",
    "families/convert.py": "weights and small files that are converted",
    "families/load.py": "configuration that is saved",
    "families/stand_in.py": "vocabulary of the small model inside",
    "nn/native/build.py": "kernels that are compiled",
    "processing/media.py": "pictures and videos that a user names",
    "processing/clip_tokens.py": "vocabulary of a checkpoint folder",
    "processing/pictures.py": "settings of a checkpoint folder",
    "processing/processor.py": "tokenizer and settings that are saved",
    "processing/published.py": "chat template of a checkpoint folder",
    "processing/tiktoken.py": "tokenizer of a checkpoint folder",
    "processing/siglip_tokens.py": "vocabulary of a checkpoint folder",
    "processing/tokens.py": "tokenizer of a checkpoint folder",
    "weights/arrays.py": "arrays that are converted",
    "weights/checkpoint.py": "headers of weight files",
    "weights/names.py": "name maps",
    "weights/pages.py": "the map of this process's own memory",
    "weights/peft.py": "adapters that are read and saved",
    "weights/pickled.py": "tensors that are converted",
    "weights/read.py": "weights",
    "weights/write.py": "weights that are saved",
    "serve/batch.py": "requests and answers that a user names",
    "serve/media.py": "pictures and videos below the one folder that a server allows",
    "data/rows.py": "records of data sets",
    "data/sinks.py": "data sets that are written",
    "data/sprites.py": "names and pictures for training",
    "eval/tasks/scenes.py": "scenes of an examination",
    "train/checkpoint.py": "state of a training run",
    "train/replay.py": "the record of a step that diverged",
    "train/tiny.py": "the tokenizer that ships inside; folders of tiny models",
}
OPENING = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "open_code", "fromfile", "memmap", "loadtxt"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Called names with the call, `a.b.c(...)` as "a.b.c" as far as it is a plain chain."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def found(rule: str, lines: list[str]) -> None:
    assert not lines, f"{rule}:\n" + "\n".join(lines)


def test_the_source_was_found():
    assert "core/errors.py" in TREES
    assert len(TREES) > 30


def test_nothing_pickles():
    found("pickle", [f"{f}: {m}" for f, t in TREES.items() for m in imports(t) if m.split(".")[0] in PICKLE])
    lines = []
    for file, tree in TREES.items():
        for name, call in calls(tree):
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name in ("torch.load", "torch.save", "torch.jit.load") or words.get("allow_pickle") == "True":
                lines.append(f"{file}:{call.lineno}: {name}")
            if name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
                lines.append(f"{file}:{call.lineno}: {name} without allow_pickle=False")
    found("pickle", lines)


def test_nothing_asserts():
    lines = [f"{f}:{n.lineno}" for f, t in TREES.items() for n in ast.walk(t) if isinstance(n, ast.Assert)]
    found("assert vanishes under python -O; raise a FovealError", lines)


def test_only_the_command_line_prints():
    lines = [
        f"{file}:{call.lineno}: {name}"
        for file, tree in TREES.items()
        for name, call in calls(tree)
        if not file.startswith("cli/") and name in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    found("use logging outside cli", lines)


STARTERS = {
    "nn/native/build.py": "the compiler, on kernels of the package",
    "serve/children.py": "a fresh interpreter with a module of ours",
}


def test_nothing_runs_text_as_code():
    bad = ("eval", "exec", "compile", "os.system", "subprocess.run", "subprocess.Popen", "__import__")
    lines = [f"{f}:{c.lineno}: {n}" for f, t in TREES.items() if f not in STARTERS for n, c in calls(t) if n in bad]
    found("no text as code", lines)


NETWORKERS = {
    "serve/batch.py": "requests and answers that a user names",
    "serve/media.py": "the one that fetches what a message names",
    "serve/wire.py": "sockets between a server and its own children",
    "serve/children.py": "sockets between a server and its own children",
    "serve/server.py": "the socket that a server listens on",
}


def test_only_the_hub_client_and_the_server_reach_the_network():
    lines = [
        f"{file}: {module}"
        for file, tree in TREES.items()
        for module in imports(tree)
        if module.split(".")[0] in NETWORK
        and file not in NETWORKERS
        and not any(module == u or module.startswith(u + ".") for u in URL_PARSING)
        and module != "urllib"
    ]
    found("fetching belongs to weights/hub.py, through huggingface_hub, and to serve/media.py", lines)
    asking = [
        f for f, t in TREES.items() if {"http", "urllib3", "requests", "httpx"} & {m.split(".")[0] for m in imports(t)}
    ]
    assert asking == ["serve/media.py"]
    hub = [f for f, t in TREES.items() if any(m.split(".")[0] == "huggingface_hub" for m in imports(t))]
    assert hub == ["weights/hub.py"]


def test_every_module_that_opens_files_is_known():
    opening = set()
    for file, tree in TREES.items():
        for name, _ in calls(tree):
            # Image.open and the like count by their last word; os.open on os.devnull is no file of anybody's.
            if name.split(".")[-1] in OPENING | {"safe_open", "save_file"} and name != "os.open":
                opening.add(file)
    # The video reader is handed an open stream by media.py, and nothing else may be.
    opening.discard("processing/video_file.py")
    assert not opening - OPENERS.keys(), "list them in OPENERS with what they open, or hand them an open stream"


def test_pictures_are_decoded_in_one_module():
    decoding = {
        file
        for file, tree in TREES.items()
        for module in imports(tree)
        if module in ("PIL.ImageFile", "PIL.JpegImagePlugin", "PIL.PngImagePlugin")
    } | {f for f, t in TREES.items() for n, _ in calls(t) if n in ("Image.open", "PIL.Image.open")}
    user_media = {f for f in decoding if not f.startswith(("data/", "train/", "eval/"))}
    assert user_media <= {"processing/media.py"}


MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt|opt)/\w")
# The brackets keep this line from finding itself.
REGISTRY_HOST = re.compile(r"py[p]i\.org|python[h]osted\.org|npm[j]s\.|js[d]elivr|ana[c]onda\.org|arti[f]actory")
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".map", ".cfg", ".yml", ".yaml", ".sh", ".jinja", ""}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    from tests.helpers.docs import check

    files = [p for p in check.tracked(ROOT) if p.suffix in TEXT and p.stat().st_size < 2_000_000]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8", errors="replace") for p in files}


def test_no_file_names_a_machine_or_a_registry(texts: dict[str, str]):
    assert "pyproject.toml" in texts
    lines = []
    for file, text in texts.items():
        published = file.startswith("tests/data_files/")
        for number, line in enumerate(text.splitlines(), start=1):
            if REGISTRY_HOST.search(line) or (MACHINE_PATH.search(line) and not published):
                lines.append(f"{file}:{number}: {line.strip()[:120]}")
    found("machine paths and registry hosts", lines)
