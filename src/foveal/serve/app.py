"""The application: which path is what, keys, places, errors, streams, and what happens when a client leaves."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foveal.core.errors import BudgetError, ContextError, FovealError, InputError, MediaError
from foveal.serve.admission import Denied, body_of
from foveal.serve.backend import EngineDown
from foveal.serve.chat import chat
from foveal.serve.completions import completion
from foveal.serve.extras import detokenize, embeddings, model_card, tokenize
from foveal.serve.openapi import document, page
from foveal.serve.options import is_loopback
from foveal.serve.service import Service
from foveal.serve.wire import WireError
from foveal.serve.work import Asked, Json

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
FILES = frozenset(f"/{p.relative_to(PAGE).as_posix()}" for p in PAGE.rglob("*") if p.is_file())
LINGER_S = 2.0
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
Endpoint = Callable[[Service, Asked], Awaitable[Json | AsyncIterator[Json]]]

POSTS: dict[str, Endpoint] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/embeddings": embeddings,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}

GUARDS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer."""


def make_app(service: Service, *, own: bool = True) -> ASGIApp:
    """The whole application. With `own` it starts the service and ends it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if own:
            await service.start()
        yield
        service.places.draining = True
        if own:
            await service.close()

    routes: list[BaseRoute] = [Route(path, _post(service, call), methods=["POST"]) for path, call in POSTS.items()]
    described = document(service)

    def get(path: str, answer: Callable[[Request], Response]) -> None:
        async def endpoint(request: Request) -> Response:
            return answer(request)

        routes.append(Route(path, endpoint, methods=["GET"]))

    def model(request: Request) -> Response:
        if request.path_params["name"] != service.name:
            return failure(Denied(404, "model_not_found", f"the model is unknown; this server has {service.name!r}."))
        return JSONResponse(model_card(service))

    def ready(_: Request) -> Response:
        good = service.backend.state == "ready" and not service.places.draining
        return JSONResponse({"ready": good, "engine": service.backend.state}, 200 if good else 503)

    get("/v1/models", lambda _: JSONResponse({"object": "list", "data": [model_card(service)]}))
    get("/v1/models/{name:path}", model)
    get("/health", lambda _: JSONResponse({"alive": True}))
    get("/ready", ready)
    get("/metrics", lambda _: Response(service.metrics.text(service.figures()), media_type="text/plain; version=0.0.4"))
    get("/openapi.json", lambda _: JSONResponse(described))
    get("/docs", lambda _: Response(page(described), media_type="text/html; charset=utf-8"))
    routes.append(Mount("/", StaticFiles(directory=PAGE, html=True)))
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http, Exception: _unexpected})
    return Door(app, service)


class Door:
    """What every request passes first: the host it names, its key; and what every answer carries."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # nothing else is spoken here
        begun, status = time.monotonic(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {name for name, _ in message["headers"]}
                extra = [(k.lower().encode(), v.encode()) for k, v in GUARDS.items()]
                message = {**message, "headers": [*message["headers"], *(h for h in extra if h[0] not in known)]}
            await send(message)

        try:
            problem = self._refuse(Request(scope))
            if problem is None:
                await self._app(scope, receive, guarded)
            else:
                await refuse(problem, scope, receive, guarded)
        finally:
            metrics, path = self._service.metrics, scope["path"]
            path = path if path in POSTS else "other"
            metrics.requests.labels(path, str(status or 499)).inc()
            metrics.seconds.labels(path).observe(time.monotonic() - begun)

    def _refuse(self, request: Request) -> Denied | None:
        keys = self._service.keys
        if keys:
            if not self._open(request.url.path) and not keys.admit(request.headers.get("authorization")):
                return Denied(401, "unauthorized", "a valid API key is needed: Authorization: Bearer KEY.")
        elif not is_loopback(_host_name(request.headers.get("host", ""))):
            # A page from elsewhere whose name was pointed at this machine must not ask in its user's name.
            return Denied(403, "host", "this server without a key answers to localhost and 127.0.0.1 only.")
        return None

    def _open(self, path: str) -> bool:
        """Whether a path needs no key. With "/" the files of the page, which hold no secret, need none either."""
        paths = self._service.options.open_paths
        return path in paths or ("/" in paths and path in FILES)


def _host_name(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _post(service: Service, call: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Served(service, call, request)

    return endpoint


class Served(Response):
    """One request from its place to its last byte. Its work is cancelled when the client leaves or the server ends."""

    def __init__(self, service: Service, call: Endpoint, request: Request) -> None:
        self._service, self._call, self._request = service, call, request
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread, begun, streams = True, False, False

        async def noted(message: Message) -> None:
            nonlocal begun, streams
            if message["type"] == "http.response.start":
                begun, streams = True, EVENTS in message["headers"]
            await send(message)

        try:
            with self._service.places.take() as place:
                if self._service.backend.state != "ready":
                    raise EngineDown
                options = self._service.options
                arrived = time.monotonic()
                body = await body_of(self._request, most_bytes=options.max_body_bytes, seconds=options.body_s)
                unread = False
                asked = Asked(body=body, place=place, arrived=arrived)
                await self._while_there(self._work(asked, scope, receive, noted), receive)
        except ClientDisconnect:
            return  # there is nobody to answer
        except FovealError as error:
            if streams:  # a stream tells errors itself, all but this one: the server ends
                await send(_event(_dump(_error(error)), last=True))
            elif begun:
                return
            elif unread:
                await refuse(error, scope, receive, send)
            else:
                await failure(error)(scope, receive, send)

    async def _while_there(self, work: Any, receive: Receive) -> None:
        """Runs `work` until it ends, the client leaves, or the server ends. Raises `Denied` in the last case."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
        self._service.working.add(task)
        try:
            if self._service.over:
                task.cancel()
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._service.metrics.aborted.inc()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.wait({task, gone})
            self._service.working.discard(task)
        if not task.cancelled():
            task.result()
        elif self._service.over:
            text = "the server is stopping and could not finish this request; ask another one."
            raise Denied(503, "stopping", text, retry_s=5)

    async def _work(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.options.request_s
        late = Denied(504, "timeout", f"the request took longer than {limit:g} s.")
        try:
            async with asyncio.timeout(limit):
                answer = await self._call(self._service, asked)
                if isinstance(answer, dict):
                    await JSONResponse(answer)(scope, receive, send)
                    return
                stream = answer.__aiter__()
                first = await anext(stream, None)  # what is refused has a status of its own
        except TimeoutError:
            raise late from None
        left = limit - (time.monotonic() - asked.arrived)
        await _stream(stream, first, left, late, send)


async def _stream(stream: Any, first: Any, left_s: float, late: Denied, send: Send) -> None:
    """Server-sent events. What goes wrong from here on is told as an event."""

    async def say(text: str) -> None:
        await send(_event(text))

    headers = [EVENTS, (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async with asyncio.timeout(left_s):
            if first is not None:
                await say(_dump(first))
                async for item in stream:
                    await say(_dump(item))
        await say("[DONE]")
    except TimeoutError:
        await say(_dump(_error(late)))
    except FovealError as error:
        await say(_dump(_error(error)))
    except Exception:
        log.exception("a stream ended with an error")
        await say(_dump(_error(FovealError("the server failed."))))
    finally:
        await stream.aclose()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(text: str, *, last: bool = False) -> Message:
    return {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": not last}


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def refuse(error: FovealError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request whose body nobody wants. What comes of it is thrown away for a moment, because a connection
    that is closed with unread bytes may take the answer with it."""

    async def open_ended(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await failure(error)(scope, receive, open_ended)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def failure(error: FovealError) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    status, headers = _status(error), {}
    retry = error.retry_s if isinstance(error, Denied) else 1 if status == 503 else None
    if retry is not None:
        headers["Retry-After"] = str(retry)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(_error(error), status, headers)


_STATUS: tuple[tuple[type[FovealError], int, str], ...] = (
    (ContextError, 400, "context_length_exceeded"),
    (BudgetError, 400, "media_too_large"),
    (MediaError, 400, "invalid_media"),
    (InputError, 400, "invalid_request"),
)
"""Errors of the caller: their class, HTTP's status, and the word for programs."""


def _status(error: FovealError) -> int:
    if isinstance(error, Denied):
        return error.status
    if isinstance(error, EngineDown | WireError):
        return 503
    return next((status for cls, status, _ in _STATUS if isinstance(error, cls)), 500)


def _error(error: FovealError) -> dict[str, Any]:
    status = _status(error)
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(status)
    code = next((word for cls, _, word in _STATUS if isinstance(error, cls)), "internal_error")
    if isinstance(error, Denied):
        code = error.code
    elif status == 503:
        code = "engine_unavailable"
    return {
        "error": {
            "message": str(error) if status != 500 else "the server failed; its log says why.",
            "type": kind or ("invalid_request_error" if status < 500 else "server_error"),
            "param": error.param if isinstance(error, Denied) else None,
            "code": code,
        }
    }


async def _http(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such path; /docs lists them.", 405: "the path has another method; /docs lists them."}
    answer = failure(Denied(status, "http", words.get(status, "the request cannot be served.")))
    if isinstance(error, HTTPException) and error.headers:
        answer.headers.update(error.headers)
    return answer


async def _unexpected(_: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return failure(FovealError("the server failed."))
