"""Files of requests: what is wrong is said before anything runs, and a stopped run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foveal.core.errors import InputError
from foveal.serve.batch import Counts, read_requests, run_batch, take_up
from foveal.serve.options import ServeOptions

ROOT = Path(__file__).parents[2]


def line(name: str, **body: Any) -> dict[str, Any]:
    body = body or {"messages": [{"role": "user", "content": f"Hello {name}"}], "max_tokens": 4, "temperature": 0}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    return path


def answered(path: Path) -> dict[str, dict[str, Any]]:
    return {row["custom_id"]: row["response"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "holds no request"),
        (["{"], "line 1 is no JSON"),
        ([[1]], 'line 1 has no "custom_id"'),
        ([line("a"), line("a")], "line 2: custom_id 'a' stands twice"),
        ([{**line("a"), "colour": 1}], "line 1 has 'colour'"),
        ([{**line("a"), "url": "/v1/other"}], "asks POST /v1/other"),
        ([{**line("a"), "method": "GET"}], "asks GET"),
        ([line("a", messages=[], stream=True)], "nothing is streamed"),
    ],
)
def test_wrong_files_are_named(lines: list[Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        read_requests(written(tmp_path / "in.jsonl", lines))


def test_empty_lines_do_not_count(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", [line("a"), "", line("b")])
    found = read_requests(path)
    data = path.read_bytes()
    assert [json.loads(data[r.start : r.start + r.length])["custom_id"] for r in found] == ["a", "b"]


def test_what_an_earlier_run_left(tmp_path: Path) -> None:
    def answer(name: str, status: int) -> dict[str, Any]:
        return {"custom_id": name, "response": {"status_code": status, "body": {}}}

    path = written(tmp_path / "out.jsonl", [answer("a", 200), answer("b", 503), answer("c", 400)])
    with path.open("a") as file:
        file.write('{"custom_id": "d", "resp')
    assert take_up(path) == {"a": 200, "c": 400}
    assert list(answered(path)) == ["a", "c"]
    assert take_up(tmp_path / "none") == {}
    with pytest.raises(InputError, match="line 2 is no answer"):
        take_up(written(tmp_path / "other", [answer("a", 200), "words", answer("b", 200)]))


def test_a_batch_and_again(tmp_path: Path) -> None:
    wrong = line(
        "wrong", messages=[{"role": "user", "content": [{"type": "image", "image": "https://a.example/x.png"}]}]
    )
    texts = {**line("text"), "url": "/v1/completions", "body": {"prompt": "A", "max_tokens": 3, "temperature": 0}}
    source = written(tmp_path / "in.jsonl", [line("a"), line("b"), wrong, texts])
    target, heard = tmp_path / "out.jsonl", []
    options = ServeOptions(threads=1, decoders=1)
    with pytest.raises(InputError, match="written over"):
        run_batch(options, source, source, heard.append)
    counts = run_batch(options, source, target, lambda c: heard.append(c.done))
    assert counts == Counts(total=4, done=4, wrong=1) and heard == [1, 2, 3, 4]
    found = answered(target)
    assert {name: r["status_code"] for name, r in found.items()} == {"a": 200, "b": 200, "wrong": 400, "text": 200}
    assert found["a"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert found["text"]["body"]["usage"]["completion_tokens"] <= 3
    assert "error" in found["wrong"]["body"]
    before = target.read_bytes()
    assert run_batch(options, source, target, heard.append) == counts
    assert target.read_bytes() == before
    strange = written(tmp_path / "few.jsonl", [line("a")])
    with pytest.raises(InputError, match="does not ask"):
        run_batch(options, strange, target, heard.append)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_batch_goes_on(how: int, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(40)]
    source, target = written(tmp_path / "in.jsonl", [line(n) for n in names]), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "foveal.cli.main", "run", str(source), "-o", str(target), "--max-num-seqs", "2"]
    command += ["--threads", "1", "--decoders", "1"]
    told = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=told,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs of a shell may be deaf to it
    )
    deadline = time.monotonic() + 240
    while not target.exists() or target.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, words = process.communicate(timeout=120)
    early = target.read_bytes().count(b"\n")
    if how == signal.SIGINT:
        assert process.returncode == 130 and "goes on" in words
    done = subprocess.run(command, env=told, stderr=subprocess.PIPE, text=True, check=False, timeout=400)
    assert done.returncode == 0 and f"40 answers in {target}, 0 with errors" in done.stderr
    assert early < 40 and sorted(answered(target)) == sorted(names)
