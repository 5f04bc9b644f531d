"""SIGTERM under open requests: they finish or are told, new ones are refused, and the process ends with status 0."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import Server

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "ignore_eos": True}


@contextmanager
def server(*flags: str) -> Iterator[tuple[Server, httpx2.Client]]:
    """A server that the test stops itself."""
    made = Server("--threads", "1", "--decoders", "1", *flags)
    try:
        with httpx2.Client(base_url=made.address(), timeout=120) as client:
            yield made, client
    finally:
        made.stop(signal.SIGKILL)


class Streaming:
    """A stream that a thread reads; `begun` is set at its first words."""

    def __init__(self, client: httpx2.Client, tokens: int) -> None:
        self.events: list[Any] = []
        self.begun = threading.Event()
        self._body = {**HELLO, "max_tokens": tokens, "stream": True}
        self._client = client
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        assert self.begun.wait(120)

    def _read(self) -> None:
        with self._client.stream("POST", CHAT, json=self._body) as answer:
            for line in answer.iter_lines():
                if line:
                    self.events.append(line.removeprefix("data: "))
                if len(self.events) > 2:
                    self.begun.set()

    def end(self) -> list[Any]:
        self.thread.join(120)
        assert not self.thread.is_alive()
        return self.events


def until_refused(client: httpx2.Client) -> httpx2.Response:
    """What a new request gets once the server has noticed that it is to stop."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = client.post(CHAT, json={**HELLO, "max_tokens": 1})
        if answer.status_code != 200:
            return answer
    raise AssertionError("the server goes on")


@pytest.mark.slow
def test_open_requests_finish_and_new_ones_are_refused():
    with server("--shutdown-timeout", "120") as (made, client):
        children = list(made.children().values())
        open_one = Streaming(client, 1500)
        os.kill(made.process.pid, signal.SIGTERM)
        refused = until_refused(client)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        events = open_one.end()
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert made.process.wait(60) == 0
    assert not any(alive(pid) for pid in children)


@pytest.mark.slow
def test_requests_that_take_too_long_are_told():
    with server("--shutdown-timeout", "0.5") as (made, client):
        open_one = Streaming(client, 1900)
        whole: list[httpx2.Response] = []
        asked = {**HELLO, "max_tokens": 1900}
        waiter = threading.Thread(target=lambda: whole.append(client.post(CHAT, json=asked)), daemon=True)
        waiter.start()
        # Idle connections and clients that never send their request do not hold it up.
        stuck = httpx2.Client(base_url=client.base_url)
        assert stuck.get("/health").status_code == 200
        wait_until(lambda: "foveal_requests_open 2.0" in client.get("/metrics").text)
        begun = time.monotonic()
        os.kill(made.process.pid, signal.SIGTERM)
        events = open_one.end()
        waiter.join(60)
        assert json.loads(events[-1])["error"]["code"] == "stopping"
        assert [(a.status_code, a.json()["error"]["code"]) for a in whole] == [(503, "stopping")]
        assert made.process.wait(60) == 0
        assert time.monotonic() - begun < 45  # seconds would do; a busy machine is slow
        stuck.close()


def wait_until(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
