"""The application in this process, with an engine that says what the test wants."""

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from foveal.core.errors import FovealError
from foveal.engine.request import Event
from foveal.families.describe import describe
from foveal.serve.app import make_app
from foveal.serve.backend import Call, EngineDown
from foveal.serve.options import ServeOptions
from foveal.serve.schema import ChatRequest
from foveal.serve.service import Service
from tests.helpers.bad_media import picture

WAIT_S = 120.0
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"


class Scripted:
    """Stands for the engine: says `text` token by token, then waits for `go` if it is told to."""

    def __init__(self, service: Service, text: str = "Good day.", *, hold: bool = False) -> None:
        tokenizer = service.talker.tokenizer
        self.tokens = [*tokenizer.encode_text(text), service.talker.end_of_turn]
        self.state, self.stats, self.restarts, self.open = "ready", {}, 0, 0
        self.asked: list[Any] = []
        self.ended: list[bool] = []
        self.hold = hold
        self.calls: list[Call] = []

    def ask(self, id, packed, sampling, *, n, grammar):
        if self.state != "ready":
            raise EngineDown
        self.asked.append((packed, sampling, grammar))
        call = Call()
        self.calls.append(call)
        for index in range(n):
            for at, token in enumerate(self.tokens[:1] if self.hold else self.tokens):
                last = at == len(self.tokens) - 1
                call.put(Event(id=id, index=index, token=token, finish_reason="stop" if last else None))
        return call

    def end(self, id, *, abort):
        self.ended.append(abort)


class Undecoded:
    """Stands for the decoders: nothing may be decoded."""

    restarts, seconds = 0, 0.0

    def __init__(self) -> None:
        self.asked = 0

    async def process(self, message, blobs=()):
        self.asked += 1
        raise AssertionError("nothing was to be decoded")


DESCRIBED = cache(describe)


def made(**settings: Any) -> Service:
    service = Service(ServeOptions(**settings))
    service.talker.context_tokens = service.context_tokens  # the processor is shared
    service.backend = Scripted(service)
    service.decoders = Undecoded()
    return service


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("foveal.serve.service.describe", DESCRIBED)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), WAIT_S))


def ask(service: Service, path: str = CHAT, body: Any = HELLO, **more: Any) -> httpx2.Response:
    async def work() -> httpx2.Response:
        transport = httpx2.ASGITransport(make_app(service, own=False))
        async with httpx2.AsyncClient(transport=transport, base_url=more.pop("base", "http://localhost")) as client:
            if body is None:
                return await client.get(path, **more)
            if isinstance(body, bytes):
                return await client.post(path, content=body, **more)
            return await client.post(path, json=body, **more)

    return run(work)


async def open_request(service: Service, body: Any, *, headers: Any = (), left: asyncio.Event) -> list[Any]:
    """One request by hand; the client leaves when `left` is set. Gives the messages that it was sent."""
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        "scheme": "http", "http_version": "1.1",
        "server": ("localhost", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"},
    }  # fmt: skip
    come = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])
    sent: list[Any] = []

    async def receive() -> Any:
        message = next(come, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    await make_app(service, own=False)(scope, receive, send)
    return sent


def test_an_answer_and_its_guards():
    service = made()
    said = ask(service)
    assert said.status_code == 200
    assert said.json()["choices"][0]["message"]["content"] == "Good day."
    assert said.headers["content-security-policy"].startswith("default-src 'none'")
    assert said.headers["x-content-type-options"] == "nosniff"
    assert "server" not in said.headers
    assert service.backend.ended == [False]
    assert service.places.taken == 0


PATHS = [CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]
READ = ["/", "/v1/models", "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/nothing"]


def test_every_path_needs_the_key():
    service = made(api_keys=("secret",), open_paths=("/health",))
    for path, body in [*((p, HELLO) for p in PATHS), *((p, None) for p in READ if p != "/health")]:
        for headers in ({}, {"Authorization": "Bearer nope"}):
            refused = ask(service, path, body, headers=headers)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
    assert service.backend.asked == []
    assert ask(service, "/health", None).status_code == 200
    assert ask(service, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_the_page_can_be_open_while_the_api_is_not():
    service = made(api_keys=("secret",), open_paths=("/",))
    for path in ("/", "/index.html", "/style.css"):
        assert ask(service, path, None).status_code == 200
    for path in ("/v1/models", "/metrics", "/../app.py", "/%2e%2e/app.py", "//v1/models"):
        assert ask(service, path, None).status_code == 401
    assert ask(service, "/../app.py", None, headers={"Authorization": "Bearer secret"}).status_code == 404


@pytest.mark.parametrize("base", ["http://evil.test", "http://localhost.evil.test", "http://192.168.0.1"])
def test_a_server_without_a_key_answers_to_its_own_names_only(base):
    assert ask(made(), base=base).status_code == 403
    assert ask(made(), "/v1/models", None, base=base).status_code == 403


@pytest.mark.parametrize("base", ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:9", "http://LOCALHOST"])
def test_names_of_this_machine(base):
    assert ask(made(), base=base).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_foreign_page_cannot_post_without_asking_first(kind):
    assert ask(made(), body=json.dumps(HELLO).encode(), headers={"content-type": kind}).status_code == 415


PAINT = {"type": "function", "function": {"name": "paint"}}
MORE: list[Any] = [
    {"temperature": -1}, {"temperature": 3}, {"temperature": "hot"}, {"temperature": True}, {"top_p": 0}, {"n": 0},
    {"n": 9}, {"n": 10**30}, {"seed": 2**64}, {"seed": 1.5}, {"max_tokens": 0}, {"max_tokens": -1},
    {"max_tokens": 4, "max_completion_tokens": 4}, {"stop": ""}, {"stop": ["x"] * 17}, {"top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 21}, {"logprobs": -1}, {"logit_bias": {"5": 1}}, {"modalities": ["audio"]},
    {"chat_template": "{{ x }}"}, {"max_pixel": 5}, {"max_pixels": 10**9}, {"max_pixels": 0}, {"fps": 0},
    {"max_pixels": 5000, "mm_processor_kwargs": {"max_pixels": 5000}}, {"response_format": {"type": "xml"}},
    {"response_format": {"type": "json_schema"}}, {"structured_outputs": {}}, {"structured_outputs": {"boxes": {}}},
    {"structured_outputs": {"regex": "a", "choice": ["a"]}}, {"structured_outputs": {"regex": "("}},
    {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, {"tool_choice": "required"},
    {"tool_choice": "maybe"}, {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    {"tools": [PAINT], "tool_choice": {"type": "function", "function": {"name": "draw"}}},
    {"tools": [PAINT], "response_format": {"type": "json_object"}}, {"max_tokens": 10**6},
    {"messages": [{"role": "user", "content": "word " * 4000}]},
]  # fmt: skip
BAD: list[Any] = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 5000, b'{"messages": []}',
    {"messages": "Hello"}, {"messages": [{"role": "king", "content": "x"}]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": None}]}, {"messages": [{"role": "user", "content": []}]},
    {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "user", "content": "x", "name": "bob"}]},
    {"messages": [{"role": "tool", "content": "x", "tool_call_id": "nobody"}]},
    *({**HELLO, **more} for more in MORE),
]  # fmt: skip


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_wrong_requests_are_refused_before_any_work(body):
    service = made()
    service.decoders.process = _too_long if "word word" in str(body) else service.decoders.process
    refused = ask(service, body=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400, refused.text
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert service.backend.asked == []
    assert service.places.taken == 0


async def _too_long(message: Any, blobs: Any = ()) -> Any:
    from foveal.core.errors import ContextError

    raise ContextError("too long")


def test_a_name_that_is_not_served():
    refused = ask(made(served_model_name="mine"), body={**HELLO, "model": "yours"})
    assert refused.status_code == 404
    assert ask(made(served_model_name="mine"), body={**HELLO, "model": "mine"}).status_code == 200


def test_large_bodies_are_refused_by_their_length_and_as_they_come():
    service = made(max_body_bytes=1000)
    assert ask(service, body=b"x" * 1001, headers={"content-type": "application/json"}).status_code == 413

    async def endless():
        for _ in range(50):
            yield b" " * 100

    async def work() -> httpx2.Response:
        transport = httpx2.ASGITransport(make_app(service, own=False))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(CHAT, content=endless(), headers={"content-type": "application/json"})

    assert run(work).status_code == 413


def test_too_many_media_are_refused_unopened():
    service = made(limit_mm_per_prompt={"image": 1, "video": 0})
    url = "data:image/png;base64," + base64.b64encode(picture("PNG")).decode()
    for part in ({"type": "image_url", "image_url": url}, {"type": "image", "image": url}):
        refused = ask(service, body={"messages": [{"role": "user", "content": [part, part]}]})
        assert refused.json()["error"]["code"] == "media_too_large"
    video = {"type": "video", "video": [url, url]}
    assert ask(service, body={"messages": [{"role": "user", "content": [video]}]}).status_code == 400
    assert service.decoders.asked == 0


def test_overload_is_refused_without_decoding_and_the_accepted_finish():
    service = made(max_num_seqs=2, max_waiting=2)
    service.backend = Scripted(service, hold=True)
    url = "data:image/png;base64," + base64.b64encode(picture("PNG")).decode()
    looking = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]}

    async def work() -> None:
        left = asyncio.Event()
        tasks = [asyncio.create_task(open_request(service, HELLO, left=left)) for _ in range(4)]
        while len(service.backend.calls) < 4:
            await asyncio.sleep(0)
        for _ in range(40):
            refused = await open_request(service, looking, left=left)
            assert refused[0]["status"] == 429
            assert int(dict(refused[0]["headers"])[b"retry-after"]) >= 1
        assert service.decoders.asked == 0
        for call in service.backend.calls:
            for at, token in enumerate(service.backend.tokens[1:], 2):
                last = at == len(service.backend.tokens)
                call.put(Event(id="", index=0, token=token, finish_reason="stop" if last else None))
        for sent in await asyncio.gather(*tasks):
            assert sent[0]["status"] == 200
        assert service.places.taken == 0

    run(work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(stream):
    service = made()
    service.backend = Scripted(service, hold=True)

    async def work() -> None:
        left, before = asyncio.Event(), asyncio.all_tasks()
        task = asyncio.create_task(open_request(service, {**HELLO, "stream": stream}, left=left))
        while not service.backend.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert service.backend.ended == []
        left.set()
        await task
        assert service.backend.ended == [True]
        assert service.places.taken == 0
        assert asyncio.all_tasks() == before

    run(work)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_a_deadline(stream):
    service = made(request_s=0.05)
    service.backend = Scripted(service, hold=True)
    said = ask(service, body={**HELLO, "stream": stream})
    if stream:
        assert '"code":"timeout"' in said.text
        assert "[DONE]" not in said.text
    else:
        assert said.status_code == 504
    assert service.backend.ended == [True]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_dies_is_told(stream):
    service = made()
    service.backend = Scripted(service, hold=True)

    async def work() -> list[Any]:
        task = asyncio.create_task(open_request(service, {**HELLO, "stream": stream}, left=asyncio.Event()))
        while not service.backend.calls:
            await asyncio.sleep(0)
        service.backend.calls[0].put(EngineDown())
        return await task

    sent = run(work)
    text = b"".join(m.get("body", b"") for m in sent).decode()
    assert "engine_unavailable" in text
    assert sent[0]["status"] == (200 if stream else 503)
    service.backend.state = "down"
    refused = ask(service)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert ask(service, "/ready", None).status_code == 503
    assert ask(service, "/health", None).status_code == 200


def test_an_error_of_one_answer_and_one_of_ours_tell_nothing_of_the_inside():
    service = made()
    service.backend.ask = lambda id, *_, **__: _with(
        Event(id=id, index=0, token=-1, finish_reason="error", error="0xdead")
    )
    said = ask(service)
    assert said.status_code == 500
    assert "0xdead" not in said.text

    def broken(*_: Any, **__: Any) -> Call:
        raise RuntimeError("0xbeef")

    service.backend.ask = broken

    async def work() -> httpx2.Response:
        transport = httpx2.ASGITransport(make_app(service, own=False), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(CHAT, json=HELLO)

    said = run(work)
    assert said.status_code == 500
    assert "0xbeef" not in said.text
    assert service.places.taken == 0


def _with(item: Event | FovealError) -> Call:
    call = Call()
    call.put(item)
    return call


def test_fields_that_change_nothing_are_named():
    said = ask(made(), body={**HELLO, "user": "me", "store": False})
    assert said.json()["foveal"]["ignored"] == ["store", "user"]


def test_reserved_words_stay_words_in_every_field():
    service = made(max_model_len=2048)
    names = list(service.talker.tokenizer.special_names)
    words = "".join(names)
    normal = ask(service).json()["usage"]["prompt_tokens"]
    assert normal
    clean = special_count(service, HELLO)
    call = {"id": "c1", "type": "function", "function": {"name": "f" + names[0], "arguments": words}}
    tool = {"type": "function", "function": {"name": "f", "description": words, "parameters": {"title": words}}}
    bodies = [
        {"messages": [{"role": "user", "content": words}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": words}]}]},
        {**HELLO, "tools": [tool]},
        {**HELLO, "stop": names[:1]},
        {**HELLO, "user": words},
    ]
    for body in bodies:
        assert special_count(service, body) == clean
    system = {"role": "system", "content": words}
    hello = HELLO["messages"][0]
    assert special_count(service, {"messages": [system, hello]}) == special_count(
        service, {"messages": [{**system, "content": "x"}, hello]}
    )
    said = {"role": "assistant", "content": words, "tool_calls": [call]}
    talk = [hello, said, {"role": "tool", "tool_call_id": "c1", "content": words}]
    plain = [hello, {"role": "assistant", "content": "x"}, hello]
    assert special_count(service, {"messages": talk}) == special_count(service, {"messages": plain})
    said = ask(service, "/v1/completions", {"prompt": words})
    assert said.status_code == 200
    packed = service.backend.asked[-1][0]
    assert not set(packed.tokens.tolist()) & service.talker.special_ids
    special = service.talker.tokenizer.special(names[0])
    assert ask(service, "/v1/completions", {"prompt": [special]}).status_code == 400
    for path, body in (("/tokenize", {"prompt": words}), ("/detokenize", {"tokens": [special]})):
        assert ask(service, path, body).status_code == 200
    tokens = ask(service, "/tokenize", {"prompt": words}).json()["tokens"]
    assert not set(tokens) & service.talker.special_ids


def special_count(service: Service, body: Any) -> int:
    assert ask(service, body=body).status_code == 200
    packed = service.backend.asked[-1][0]
    return sum(int(i) in service.talker.special_ids for i in packed.tokens)


def test_the_document_describes_itself():
    described = ask(made(), "/openapi.json", None).json()
    text = json.dumps(described)
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in described["components"]["schemas"]
    assert set(PATHS) <= set(described["paths"])
    closed = ask(made(api_keys=("k",)), "/openapi.json", None, headers={"Authorization": "Bearer k"}).json()
    assert closed["security"] == [{"key": []}]


def leaves(schema: dict[str, Any]) -> set[tuple[str, str]]:
    """Model and field of every free text, and of every object of any content, that a request may hold."""
    models = {**schema.get("$defs", {}), schema["title"]: {k: v for k, v in schema.items() if k != "$defs"}}

    def is_free(node: Any) -> bool:
        if not isinstance(node, dict) or {"enum", "const", "pattern", "$ref"} & node.keys():
            return False
        if node.get("type") == "string" or node.get("additionalProperties") is True:
            return True
        under = [*node.get("anyOf", ()), *node.get("oneOf", ()), node.get("items"), node.get("additionalProperties")]
        return any(map(is_free, under))

    return {
        (name, field)
        for name, model in models.items()
        for field, node in model.get("properties", {}).items()
        if is_free(node)
    }


def held(value: Any, word: str) -> set[tuple[str, str]]:
    """Model and field of every place of a request that holds `word`."""
    if isinstance(value, list | tuple):
        return {found for one in value for found in held(one, word)}
    if not isinstance(value, BaseModel):
        return set()
    found = set()
    for name, field in type(value).model_fields.items():
        one = getattr(value, name)
        inner = held(one, word)
        if not inner and word in json.dumps(one, default=str, ensure_ascii=False):
            inner = {(type(value).__name__, field.alias or name)}
        found |= inner
    return found


def texts_everywhere(word: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests that hold `word`, together in every free text that requests have."""
    hello, ask = {"role": "user", "content": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}
    schema = {"type": "object", "title": word, "properties": {word: {"enum": [word], "description": word}}}
    call = {"id": word, "function": {"name": word, "arguments": json.dumps({word: word})}}
    broken = {"id": "c2", "function": {"name": word, "arguments": word}}
    part = {"type": "text", "text": word}
    named = {"name": "paint", "description": word, "parameters": schema}
    tool = {"type": "function", "function": named}
    form = {"name": "thing", "description": word, "schema": schema}
    chats = [
        {"messages": [{"role": "system", "content": word}, hello]},
        {"messages": [{"role": "developer", "content": [part, part]}, hello]},
        {"messages": [{"role": "user", "content": word}]},
        {"messages": [{"role": "user", "content": [part]}], "tools": [tool]},
        {"messages": [hello, {"role": "assistant", "content": word}, hello]},
        {
            "messages": [
                hello, {"role": "assistant", "content": [part], "tool_calls": [call, broken]},
                {"role": "tool", "tool_call_id": word, "content": word},
                {"role": "tool", "tool_call_id": "c2", "content": [part]},
            ]
        },
        {**ask, "tools": [tool], "tool_choice": "required"},
        {**ask, "response_format": {"type": "json_schema", "json_schema": form}},
        {**ask, "structured_outputs": {"json": schema}},
        {**ask, "structured_outputs": {"choice": [word]}},
        {**ask, "structured_outputs": {"regex": re.escape(word)}},
        {**ask, "structured_outputs": {"boxes": {"labels": [word]}}},
        {**ask, "stop": word},
        {**ask, "stop": [word]},
        {**ask, "user": word, "prompt_cache_key": word, "safety_identifier": word, "metadata": {word: word}},
        {**ask, "service_tier": word},
        {**ask, "model": word},
        *({"messages": [{"role": "user", "content": [p]}]} for p in addresses(word)),
    ]  # fmt: skip
    return [
        *((CHAT, body) for body in chats),
        ("/v1/completions", {"prompt": word}),
        ("/v1/completions", {"prompt": [word, word]}),
        ("/tokenize", {"messages": chats[5]["messages"]}),
        ("/tokenize", {"prompt": word}),
        ("/v1/embeddings", {"input": [word, part], "user": word}),
    ]


def addresses(word: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": word}, {"type": "image_url", "image_url": {"url": word}},
        {"type": "image", "image": word}, {"type": "video", "video": word}, {"type": "video", "video": [word, word]},
        {"type": "video_url", "video_url": word}, {"type": "video_url", "video_url": {"url": word}},
    ]  # fmt: skip


def test_every_text_of_a_chat_request_is_tried_below():
    """A new field of requests has to be added to `texts_everywhere`."""
    bodies = [body for path, body in texts_everywhere("WORD") if path == CHAT]
    tried = {place for body in bodies for place in held(ChatRequest.model_validate(body), "WORD")}
    assert len(tried) > 20
    assert leaves(ChatRequest.model_json_schema()) == tried


def test_no_text_of_a_request_becomes_a_special_token():
    """Every special string in every text field: no special token more than with a harmless word, and no 5xx."""
    service = made(max_model_len=2048)
    names = service.talker.tokenizer.special_names
    chunks = [("".join(names[at : at + 4]))[:120] for at in range(0, len(names), 4)]
    assert all(any(name in chunk for chunk in chunks) for name in names)

    def counted(path: str, body: Any) -> tuple[int, list[int]]:
        before = len(service.backend.asked)
        answer = ask(service, path, body)
        prompts = [packed.tokens for packed, _, _ in service.backend.asked[before:]]
        if path == "/tokenize":
            prompts = [answer.json()["tokens"]]
        return answer.status_code, [sum(int(i) in service.talker.special_ids for i in ids) for ids in prompts]

    plain = [counted(path, body) for path, body in texts_everywhere("word")]
    assert sum(status == 200 for status, _ in plain) == 19
    for chunk in chunks:
        for (path, body), clean in zip(texts_everywhere(chunk), plain, strict=True):
            found = counted(path, body)
            assert found == clean and found[0] < 500, (path, body)
