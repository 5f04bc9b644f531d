"""The page in headless Chromium, against a stand-in that streams what these tests tell it to."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveal.serve.app import GUARDS, PAGE

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples" / "scene.png"
SIZE = (448, 336)

pytestmark = pytest.mark.slow


class Guarded:
    """The server's own headers on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in GUARDS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, guarded)


class StandIn:
    """An API whose answers are given; it keeps what it was asked, and holds a stream open while `held`."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.boxes: list[dict[str, Any]] = []
        self.refusal: tuple[int, str] | None = None
        self.key = ""
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.held = threading.Event()

    def app(self) -> Any:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.responses import JSONResponse, StreamingResponse
        from starlette.routing import Mount, Route
        from starlette.staticfiles import StaticFiles

        def refused(request: Any) -> Any:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "wrong key", "code": 401}}, 401)
            if self.refusal:
                return JSONResponse({"error": {"message": self.refusal[1]}}, self.refusal[0])
            return None

        async def models(request: Any) -> Any:
            return refused(request) or JSONResponse({"data": [{"id": "stand-in", "foveal": {"max_pixels": 1_003_520}}]})

        async def chat(request: Any) -> Any:
            self.asked.append(await request.json())
            return refused(request) or StreamingResponse(self.stream(request), media_type="text/event-stream")

        return Starlette(
            routes=[
                Route("/v1/models", models),
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Mount("/", StaticFiles(directory=PAGE, html=True)),
            ],
            middleware=[Middleware(Guarded)],
        )

    async def stream(self, request: Any) -> Any:
        import asyncio

        def event(**values: Any) -> str:
            return f"data: {json.dumps(values)}\n\n"

        try:
            media = [{"original_size": SIZE, "processed_size": [448, 336]}]
            yield event(choices=[{"delta": {"role": "assistant"}, "finish_reason": None}], foveal={"media": media})
            for piece in self.pieces:
                yield event(choices=[{"delta": {"content": piece}, "finish_reason": None}])
            while self.held.is_set():
                await asyncio.sleep(0.02)
            yield event(choices=[{"delta": {"boxes": self.boxes}, "finish_reason": "stop"}])
            yield event(choices=[], usage={"prompt_tokens": 210, "completion_tokens": len(self.pieces)})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise


@pytest.fixture
def stand_in() -> Iterator[tuple[StandIn, str]]:
    import uvicorn

    made = StandIn()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(made.app(), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield made, f"http://127.0.0.1:{port}/"
    made.held.clear()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, stand_in: tuple[StandIn, str]) -> Iterator[Any]:
    """An opened page; what its console complains about, and any request to elsewhere, fails the test."""
    context = browser.new_context(locale="en-GB", color_scheme="light", viewport={"width": 900, "height": 900})
    made, complaints = context.new_page(), []
    made.set_default_timeout(20_000)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on(
        "console",
        lambda m: complaints.append(m.text) if m.type == "error" and "Failed to load resource" not in m.text else None,
    )
    made.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((stand_in[1], "data:")) else None)
    made.complaints = complaints
    made.goto(stand_in[1])
    made.wait_for_selector("body[data-ready]")
    yield made
    assert complaints == []
    context.close()


BOXES = [
    {"label": "crown", "box_px": [10.0, 20.0, 110.0, 100.0], "image": 0, "processed_size": [448, 336], "flags": []},
    {"label": "disc", "box_px": [200.0, 150.0, 300.0, 250.0], "image": 0, "processed_size": [448, 336], "flags": []},
]


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector("#send:not([disabled])")


def test_a_question_about_a_picture(page: Any, stand_in: tuple[StandIn, str]) -> None:
    api, _ = stand_in
    api.pieces, api.boxes = ["a crown", " and ", "a disc"], BOXES
    page.set_input_files("#files", SCENE)
    page.wait_for_selector("#tray img")
    page.select_option("#pixels", index=2)
    ask(page, "What is <b>there</b>?")
    (asked,) = api.asked
    first, second = asked["messages"][0]["content"]
    assert first["image_url"]["url"].startswith("data:image/png;base64,")
    assert second == {"type": "text", "text": "What is <b>there</b>?"}
    assert asked["max_pixels"] == 1_003_520 // 2 and asked["stream"] is True
    assert page.inner_text(".user .text") == "What is <b>there</b>?"
    assert page.inner_text(".assistant .text") == "a crown and a disc"
    assert page.eval_on_selector(".over rect", "r => [r.x, r.y, r.width, r.height].map(v => v.baseVal.value)") == [
        10, 20, 100, 80,
    ]  # fmt: skip
    assert page.locator(".tag").all_inner_texts() == ["crown", "disc"]
    note = page.inner_text(".assistant .note")
    assert "210 + 3 tokens" in note and "448 × 336" in note
    # The outline lies over the picture where the box is, whatever size it is shown at.
    image, outline = page.locator("figure img").bounding_box(), page.locator(".over rect").nth(1).bounding_box()
    scale = image["width"] / SIZE[0]
    assert abs(outline["x"] - image["x"] - 200 * scale) < 4 and abs(outline["width"] - 100 * scale) < 8
    page.hover(".text mark >> nth=1")
    assert page.locator(".over .lit").count() == 1
    assert page.eval_on_selector(".over .lit", "r => r.x.baseVal.value") == 200
    page.hover(".over rect >> nth=0")
    assert page.locator("mark.lit").all_inner_texts() == ["crown"]
    page.focus(".places li >> nth=1")
    assert page.locator("mark.lit").all_inner_texts()[-1] == "disc"


def test_the_conversation_stays_in_the_tab_and_goes_on(page: Any, stand_in: tuple[StandIn, str]) -> None:
    api, _ = stand_in
    api.pieces = ["A hat."]
    page.set_input_files("#files", SCENE)
    page.wait_for_selector("#tray img")
    ask(page, "What is it?")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("article").count() == 2 and page.locator("figure img").count() == 1
    ask(page, "Which colour?")
    roles = [m["role"] for m in api.asked[-1]["messages"]]
    assert roles == ["user", "assistant", "user"] and api.asked[-1]["messages"][1]["content"] == "A hat."
    page.click("#fresh")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("article").count() == 0


def begin_answer(page: Any, api: StandIn) -> None:
    """An answer that has begun, and does not end."""
    api.pieces = ["begun"]
    api.held.set()
    page.fill("#question", "Tell me.")
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant .text:text-is('begun')")


def test_escape_stops_an_answer(page: Any, stand_in: tuple[StandIn, str]) -> None:
    api, _ = stand_in
    begin_answer(page, api)
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:not([disabled])")
    assert api.left.wait(10)
    assert page.inner_text(".assistant .note") == "stopped"


def test_a_new_conversation_leaves_a_running_answer_behind(page: Any, stand_in: tuple[StandIn, str]) -> None:
    api, _ = stand_in
    begin_answer(page, api)
    page.click("#fresh")
    page.wait_for_selector("#send:not([disabled])")
    assert api.left.wait(10)
    assert page.locator("article").count() == 0 and page.input_value("#question") == ""
    api.held.clear()
    ask(page, "Hello?")
    assert [m["content"] for m in api.asked[-1]["messages"]] == ["Hello?"]


def test_a_refusal_gives_the_question_back(page: Any, stand_in: tuple[StandIn, str]) -> None:
    api, _ = stand_in
    api.refusal = (429, "too many requests; try again in 2 s")
    page.set_input_files("#files", SCENE)
    page.wait_for_selector("#tray img")
    ask(page, "What is it?")
    assert page.inner_text("#news") == "too many requests; try again in 2 s"
    assert page.input_value("#question") == "What is it?" and page.locator("#tray img").count() == 1
    assert page.locator("article").count() == 0


def test_a_key_is_asked_for(browser: Any, stand_in: tuple[StandIn, str]) -> None:
    api, url = stand_in
    api.key, api.pieces = "secret", ["yes"]
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.goto(url)
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    page.wait_for_selector("#model:text-is('stand-in')")
    ask(page, "Well?")
    assert page.inner_text(".assistant .text") == "yes"
    context.close()


def test_pictures_are_pasted_and_dropped(page: Any) -> None:
    for kind, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([kind, holder, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], kind + '.png', {type: 'image/png'}));
                const event = kind === 'paste'
                    ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})
                    : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
                document.getElementById('question').dispatchEvent(event);
            }""",
            [kind, holder, list(SCENE.read_bytes())],
        )
        page.wait_for_selector(f"#tray img[alt='{kind}.png']")
    page.click("#tray li:first-child button")
    assert page.locator("#tray img").count() == 1


def test_both_languages_and_both_lights(page: Any, stand_in: tuple[StandIn, str]) -> None:
    light = page.eval_on_selector("body", "b => getComputedStyle(b).backgroundColor")
    page.click("#theme")
    assert page.eval_on_selector("body", "b => getComputedStyle(b).backgroundColor") != light
    page.click("#language")
    assert page.inner_text("#send") == "提问" and page.get_attribute("html", "lang") == "zh"
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#send") == "提问"
    assert page.get_attribute("html", "data-theme") == "dark"
    # Every word of one language is there in the other.
    missing = page.evaluate(
        """async () => {
            const {WORDS} = await import('./words.js');
            const [a, b] = Object.values(WORDS).map((w) => Object.keys(w));
            return [...a.filter((k) => !b.includes(k)), ...b.filter((k) => !a.includes(k))];
        }"""
    )
    assert missing == []


def test_the_keyboard_reaches_everything(page: Any) -> None:
    names = set()
    page.focus("#question")
    for _ in range(12):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"skip", "pixels", "language", "theme", "fresh", "question", "add", "send"} <= names


def test_nothing_but_our_own_files_runs(page: Any, stand_in: tuple[StandIn, str]) -> None:
    answer = page.request.get(stand_in[1])
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    # What an answer or a file name could smuggle in does not run.
    page.evaluate("() => document.body.insertAdjacentHTML('beforeend', `<img src='data:x' onerror='window.ran = 1'>`)")
    page.evaluate(
        "() => document.body.append(Object.assign(document.createElement('script'), {textContent: 'ran = 1'}))"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("() => window.ran") is None
    assert len(page.complaints) == 2
    page.complaints.clear()


def test_the_small_model_answers_with_a_box(browser: Any, served: Any) -> None:
    """The whole way: the real server, the model inside, a picture, and its box over it."""
    address = served[1]
    context = browser.new_context(locale="en-GB", viewport={"width": 900, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#model:text-is('foveal-nano')")
    page.set_input_files("#files", SCENE)
    page.wait_for_selector("#tray img")
    ask(page, "Find the crown.")
    assert "crown" in page.inner_text(".assistant .text")
    assert page.locator(".over rect").count() == 1
    assert page.locator(".tag").all_inner_texts() == ["crown"]
    assert page.locator(".places li").count() == 1
    picture = os.environ.get("SCREENSHOTS")
    if picture:
        page.screenshot(path=f"{picture}/page.png")
    context.close()
