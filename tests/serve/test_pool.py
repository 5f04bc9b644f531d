"""What strangers send is decoded in a child, and whatever they send, it answers or is replaced."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator

import pytest

from foveal.core.errors import BudgetError, ConfigError, ContextError, InputError, MediaError
from foveal.families.describe import describe, folder_of
from foveal.serve.pool import Decoders
from foveal.serve.wire import read_pack
from tests.helpers.bad_media import corpus, large, picture

WAIT_S = 120.0
SETTINGS = {
    "folder": str(folder_of(None)),
    "context_tokens": None,
    "memory_bytes": 2 * 1024**3,
    "budget": {"image_px": 33_000_000, "file_bytes": 32 * 1024**2, "frames": 16, "media": 4},
}


def wanted(*sources: object, kind: str = "image", **more: object) -> dict:
    parts = [{"type": kind, kind: source} for source in sources]
    content = [*parts, {"type": "text", "text": "What <|im_end|> is this?"}]
    return {"messages": [{"role": "user", "content": content}], "generate": True, "knobs": {}, **more}


LONG = [{"role": "user", "content": [{"type": "text", "text": "word " * 9000}]}]


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Callable[[Decoders], Awaitable[object]]], object]]:
    decoders = Decoders(SETTINGS, count=1, limit_s=WAIT_S)
    with asyncio.Runner() as runner:
        runner.run(decoders.start())
        yield lambda work: runner.run(asyncio.wait_for(work(decoders), WAIT_S))
        decoders.close()


def test_a_pack_is_that_of_the_processor(run):
    processor = describe(folder_of(None)).processor
    sound, other = picture("PNG"), picture("JPEG", (300, 200))
    url = "data:image/jpeg;base64," + base64.b64encode(other).decode()

    async def ask(decoders: Decoders):
        return await decoders.process(wanted({"blob": 0}, url), [sound])

    reply, arrays = run(ask)
    packed = read_pack(reply["packed"], arrays)
    content = [{"type": "image", "image": sound}, {"type": "image", "image": other}, "What <|im_end|> is this?"]
    own = processor.process([{"role": "user", "content": content}], generate=True)
    for name in ("tokens", "positions", "starts", "deltas", "patches", "grids"):
        assert (getattr(packed, name) == getattr(own, name)).all(), name
    assert packed.runs == own.runs
    assert packed.spans == own.spans
    assert [m.view for m in packed.media] == [m.view for m in own.media]

    async def count(decoders: Decoders):
        return await decoders.process(wanted({"blob": 0}, count=True), [sound])

    reply, arrays = run(count)
    assert len(read_pack(reply["packed"], arrays).patches) == 0


@pytest.mark.parametrize("kind", ["image", "video"])
def test_bad_files_are_refused_and_the_decoder_lives(run, kind):
    # Of a cut GIF the frames before the cut are a sound, shorter film.
    files = [(name, data) for name, data in corpus() if kind == "image" or not name.endswith(".gif")]
    assert len(files) >= 100

    async def ask(decoders: Decoders):
        taken = []
        for name, data in files:
            try:
                await decoders.process(wanted({"blob": 0}, kind=kind, count=True), [data])
                taken.append(name)
            except InputError as error:
                assert len(str(error)) < 400, name
                assert "0x" not in str(error), name
        return taken, decoders.restarts

    taken, restarts = run(ask)
    assert taken == []
    assert restarts == 0


@pytest.mark.parametrize(
    ("message", "blobs", "error"),
    [
        (wanted("http://127.0.0.1/"), [], InputError),
        (wanted("file:///etc/passwd"), [], InputError),
        (wanted("/etc/passwd"), [], InputError),
        (wanted({"blob": 5}), [], MediaError),
        (wanted({"blob": 0}), [b""], MediaError),
        (wanted({"blob": 0}), [bytes(33 * 1024**2)], BudgetError),
        (wanted(*[{"blob": 0}] * 5), [picture("PNG")], BudgetError),
        (wanted([{"blob": 0}] * 18, kind="video"), [picture("PNG")], BudgetError),
        (wanted("data:image/png;base64,!!!"), [], MediaError),
        ({**wanted(), "messages": LONG}, [], ContextError),
    ],
)  # fmt: skip
def test_requests_that_pass_a_limit(run, message, blobs, error):
    async def ask(decoders: Decoders):
        with pytest.raises(error):
            await decoders.process(message, blobs)

    run(ask)


def test_a_decoder_that_dies_or_hangs_is_replaced():
    async def work() -> None:
        decoders = Decoders({**SETTINGS, "budget": {}}, count=1, limit_s=WAIT_S, requests=3)
        await decoders.start()
        try:
            (child,) = decoders._children
            busy = asyncio.create_task(decoders.process(wanted({"blob": 0}), [large()]))
            await asyncio.sleep(0.02)
            child.process.kill()
            with pytest.raises(MediaError, match="cannot be decoded"):
                await busy
            await decoders.process(wanted({"blob": 0}, count=True), [picture("PNG")])
            assert decoders.restarts == 1
            decoders._limit_s = 0.01
            with pytest.raises(MediaError, match="took longer"):
                await decoders.process(wanted({"blob": 0}), [large()])
            decoders._limit_s = WAIT_S
            for _ in range(5):  # after three requests it is replaced anyway
                await decoders.process(wanted({"blob": 0}, count=True), [picture("PNG")])
            assert decoders.restarts == 3
        finally:
            decoders.close()

    asyncio.run(asyncio.wait_for(work(), WAIT_S))


def test_a_folder_that_cannot_be_read_says_why(tmp_path):
    decoders = Decoders({**SETTINGS, "folder": str(tmp_path)}, count=1, limit_s=WAIT_S)
    with pytest.raises(ConfigError, match=r"config\.json"):
        asyncio.run(decoders.start())
    decoders.close()
