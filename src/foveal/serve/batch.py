"""Offline batches in OpenAI's format: a file of requests becomes a file of answers.

A request is one line of JSON: {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}. Its
answer is one too: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}, in the order
in which answers end. A run that was stopped goes on where it was: what the file of answers holds is not asked again,
unless the server failed at it.
"""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.core.errors import FovealError, InputError
from foveal.serve.admission import Denied
from foveal.serve.app import POSTS, failure
from foveal.serve.options import ServeOptions
from foveal.serve.service import Service
from foveal.serve.work import Asked

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
TRIES = 4
"""How often a request is put to an engine that is not there."""
PAUSE_S = 2.0
FAILED = 500
"""Statuses from here on are the server's fault: such lines are asked again by the next run."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Where a request stands in its file: first byte and length of its line."""

    custom_id: str
    url: str
    start: int
    length: int


@dataclass(kw_only=True)
class Counts:
    """How far a batch is: requests in all, answered (by earlier runs too), and those answered with an error."""

    total: int
    done: int = 0
    wrong: int = 0


def read_requests(path: Path) -> list[Request]:
    """All requests of a file, whose bodies stay on disk.

    Raises:
        InputError: a line is no request, or an id stands twice; the message names the line.
    """
    found: dict[str, Request] = {}
    for number, start, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError:
            raise InputError(f"{where} is no JSON; expected one request a line.") from None
        if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
            raise InputError(f'{where} has no "custom_id"; expected custom_id, method, url and body.')
        unknown = sorted(value.keys() - {"custom_id", "method", "url", "body"})
        if unknown:
            raise InputError(f"{where} has {unknown[0]!r}; expected custom_id, method, url and body.")
        if value.get("method") != "POST" or value.get("url") not in PATHS:
            raise InputError(
                f"{where} asks {value.get('method')} {value.get('url')}; a batch takes POST and {', '.join(PATHS)}."
            )
        body = value.get("body")
        if not isinstance(body, dict) or body.get("stream"):
            raise InputError(f"{where}: the body has to be an object, and nothing is streamed in a batch.")
        name = value["custom_id"]
        if name in found:
            raise InputError(f"{where}: custom_id {name!r} stands twice; answers could not be told apart.")
        found[name] = Request(custom_id=name, url=value["url"], start=start, length=len(line))
    if not found:
        raise InputError(f"{path} holds no request.")
    return list(found.values())


def take_up(path: Path) -> dict[str, int]:
    """The status of every answer that an earlier run left. Half a line at the end, and answers that the server failed
    at, are taken out of the file.

    Raises:
        InputError: the file holds something else than answers.
    """
    if not path.exists():
        return {}
    found: dict[str, int] = {}
    kept: list[tuple[int, int]] = []
    size = path.stat().st_size
    for number, start, line in _lines(path):
        try:
            value = json.loads(line)
            name, status = value["custom_id"], value["response"]["status_code"]
            good = isinstance(name, str) and isinstance(status, int)
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            if start + len(line) == size and not line.endswith(b"\n"):
                continue  # what was written when the run was killed
            raise InputError(f"{path}, line {number} is no answer of a batch; choose another file to write to.")
        if status < FAILED:
            found[name] = status
            kept.append((start, len(line)))
    if sum(length for _, length in kept) < size:
        rest = path.with_name(f".{path.name}.part")
        with path.open("rb") as old, rest.open("wb") as new:
            for start, length in kept:
                old.seek(start)
                line = old.read(length)
                new.write(line if line.endswith(b"\n") else line + b"\n")
            new.flush()
            os.fsync(new.fileno())
        rest.replace(path)
    return found


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, first byte and bytes of every line that is not empty."""
    try:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, start, line
                start += len(line)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def run_batch(options: ServeOptions, source: Path, target: Path, tell: Callable[[Counts], None]) -> Counts:
    """Answers every request of `source` that `target` holds no answer to. `tell` hears of each.

    Raises:
        InputError: one of the files is not what it should be; ConfigError: the model cannot be served.
    """
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be written over; choose another file for the answers.")
    requests = read_requests(source)
    known = take_up(target)
    strangers = known.keys() - {r.custom_id for r in requests}
    if strangers:
        raise InputError(
            f"{target} has an answer to {min(strangers)!r}, which {source} does not ask; choose another file."
        )
    counts = Counts(total=len(requests), done=len(known), wrong=sum(s >= 400 for s in known.values()))
    open_ones = [r for r in requests if r.custom_id not in known]
    if open_ones:
        asyncio.run(_answer(options, source, target, open_ones, counts, tell))
    return counts


async def _answer(
    options: ServeOptions,
    source: Path,
    target: Path,
    requests: list[Request],
    counts: Counts,
    tell: Callable[[Counts], None],
) -> None:
    service = Service(options)
    await service.start()
    waiting = iter(requests)
    try:
        with source.open("rb") as questions, target.open("ab") as answers:

            async def clerk() -> None:
                for request in waiting:
                    questions.seek(request.start)
                    body = json.loads(questions.read(request.length))["body"]
                    status, answer = await _ask(service, request.url, body)
                    line = {
                        "id": f"batch_req_{uuid.uuid4().hex}",
                        "custom_id": request.custom_id,
                        "response": {"status_code": status, "request_id": uuid.uuid4().hex, "body": answer},
                        "error": None,
                    }
                    answers.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    answers.flush()
                    counts.done += 1
                    counts.wrong += status >= 400
                    tell(counts)

            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.max_num_seqs, len(requests))):
                    group.create_task(clerk())
    finally:
        await service.close()


async def _ask(service: Service, url: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of one answer. While the engine is started again, the request waits."""
    for left in reversed(range(TRIES)):
        try:
            with service.places.take() as place:
                asked = Asked(body=json.dumps(body).encode(), place=place, arrived=time.monotonic())
                async with asyncio.timeout(service.options.request_s):
                    return 200, await POSTS[url](service, asked)
        except TimeoutError:
            limit = service.options.request_s
            answer = failure(Denied(504, "timeout", f"the request took longer than {limit:g} s."))
        except FovealError as error:
            answer = failure(error)
        if answer.status_code != 503 or not left:
            break
        await asyncio.sleep(PAUSE_S)
    return answer.status_code, json.loads(bytes(answer.body))
