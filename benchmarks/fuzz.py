"""Feeds damaged input to what reads strangers' input; a crash is anything but an answer or an error of our own.

    python benchmarks/fuzz.py chat --minutes 10       bodies of /v1/chat/completions: checked, turned into a prompt
    python benchmarks/fuzz.py boxes --minutes 10      answers of models, for every family's way to write boxes
    python benchmarks/fuzz.py headers --minutes 10    pictures and videos
    python benchmarks/fuzz.py wire --minutes 10       messages between processes

Sound examples are cut, joined, repeated and mixed with words that mean something. A failure prints its seed; `--seed`
starts there again.
"""

import argparse
import json
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveal.core.box import ImageView, Space
from foveal.core.errors import FovealError
from foveal.core.media import MediaBudget
from foveal.families.describe import describe, folder_of
from foveal.processing.det_boxes import DetBoxes
from foveal.processing.grounding import TaggedBoxes, parse
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.segments import SpecialSegment, TextSegment

ROOT = Path(__file__).parents[1]
LONGEST_S = 5.0

WORDS = (
    '{"role": "user", "content": ', '"messages": [', '"type": "image_url"',
    '"image_url": {"url": "data:image/png;base64,',
    '"tools": [', '"tool_choice": "required"', '"response_format": {"type": "json_schema"', '"$ref": "#"', "1e999",
    "null", "-0", "\\ud800", "\\u0000", '"structured_outputs": {"regex": "', "(a+)+$", "[" * 50, "{" * 50, '"n": 8',
    '"stop": ["', '"max_pixels": 1', "NaN", '"pattern": "', "}" * 5, "]" * 5, '"boxes": {"labels": ["', "<|im_end|>",
)  # fmt: skip
MARKS = (
    "(12,34),(56,78)", "[[1, 2, 3, 4]]", '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]\n```', "(", ")", "[", "]",
    "{", "}", ",", '"', "\\", "9" * 30, "-", ".", "1e9", "NaN", '"point_2d": [', "<|box_start|>", "\n", "é", "😀", "\0",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1.5, "", "x", "<|im_end|>", "(a|b)*c{2,9}", "((", [], {}, [[]], {"type": "string"},
    {"$ref": "#"}, {"$ref": "http://127.0.0.1:9/"}, {"type": "array", "items": {"$ref": "#"}}, {"enum": [1, "a", None]},
    {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "[a-f]+"}]}, {"allOf": [False]}, "data:,", "\0",
    {"type": "text", "text": "more"}, {"regex": "[^x]{1,5}"}, {"json": {"type": "object"}}, {"boxes": {"most": 1}},
)  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(VALUES)
    if isinstance(value, list):
        at, copy = chance.randrange(len(value)), [*value]
        match chance.randrange(4):
            case 0:
                del copy[at]
            case 1:
                copy *= chance.randint(2, 9)
            case _:
                copy[at] = changed(value[at], chance)
        return copy
    key = chance.choice(list(value))
    if chance.random() < 0.1:
        return {k: v for k, v in value.items() if k != key}
    return {**value, key: changed(value[key], chance)}


def damaged(sound: bytes, chance: random.Random, words: tuple[bytes, ...]) -> bytes:
    """`sound` after a few accidents."""
    data = bytearray(sound)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + int(chance.expovariate(0.05)))
        match chance.randrange(6):
            case 0:
                del data[at:to]
            case 1:
                data[at:at] = data[at:to] * chance.randint(1, 20)
            case 2:
                data[at:to] = chance.randbytes(to - at)
            case 3 if words:
                data[at:at] = chance.choice(words)
            case 4 if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
            case 5:
                data = data[: max(1, at)]
    return bytes(data)


def chat() -> Callable[[random.Random], None]:
    from pydantic import ValidationError

    from foveal.serve.conversation import conversation
    from foveal.serve.form import form
    from foveal.serve.grammar import Vocabulary
    from foveal.serve.options import ServeOptions
    from foveal.serve.schema import ChatRequest

    processor, options = describe(folder_of(None)).processor, ServeOptions()
    vocabulary = Vocabulary(processor.tokenizer, [processor.end_of_turn])
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x+$"}}, "required": ["a"]}
    function = {"name": "paint", "description": "Paints.", "parameters": schema}
    call = {"id": "c", "type": "function", "function": {"name": "paint", "arguments": "{}"}}
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    sound = [
        {"messages": talk, "temperature": 1, "n": 2, "seed": 5, "stop": ["a"]},
        {"messages": talk, "tools": [{"type": "function", "function": function}], "tool_choice": "required"},
        {
            "messages": talk[:2],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        },
        {"messages": talk[:2], "structured_outputs": {"regex": "[a-z]{3}(x|y)*"}},
        {"messages": talk[:2], "structured_outputs": {"choice": ["yes", "no"]}},
    ]
    bodies = [json.dumps(body).encode() for body in sound]
    words = tuple(word.encode() for word in WORDS)

    def try_one(chance: random.Random) -> None:
        if chance.random() < 0.3:
            body = damaged(chance.choice(bodies), chance, words)
        else:
            body = json.dumps(changed(chance.choice(sound), chance)).encode()
        try:
            request = ChatRequest.model_validate_json(body)
        except ValidationError:
            return
        found = conversation(request, options, processor)
        grammar = form(request, processor, vocabulary.specials, None)
        if grammar is not None:
            vocabulary.check(grammar)
            vocabulary.constraint(grammar).mask()
        if not found.places:
            packed = processor.process(found.messages, **found.knobs)
            roles = {s.role for s in packed.spans}
            if not roles <= {"system", "user", "assistant", "tool", "prompt"}:
                raise SystemError(f"roles {roles}")

    return try_one


def boxes() -> Callable[[random.Random], None]:
    styles: list[Any] = [
        TaggedBoxes(),
        TaggedBoxes(ref=("<ref>", "</ref>"), box=("<box>", "</box>"), quad=("<quad>", "</quad>")),
        DetBoxes(),
        *(JsonBoxes(space=space) for space in (Space.PROCESSED_PX, Space.RELATIVE_1000)),
    ]

    def try_one(chance: random.Random) -> None:
        style = chance.choice(styles)
        view = chance.choice((None, ImageView(original=(640, 480), processed=(644, 476))))
        segments: list[Any] = []
        for _ in range(chance.randint(1, 12)):
            if style.specials and chance.random() < 0.5:
                segments.append(SpecialSegment(name=chance.choice(style.specials)))
            else:
                text = "".join(chance.choice(MARKS) for _ in range(chance.randint(1, 8)))
                letters = damaged(text.encode(), chance, ())
                segments.append(TextSegment(text=letters.decode("utf-8", "replace")))
        found = parse(segments, style, view, 0)
        for box in found.boxes:
            if view is not None and not (min(box.corners) >= 0 and max(box.corners) <= 640):
                raise SystemError(f"{box} is outside the picture")

    return try_one


def headers() -> Callable[[random.Random], None]:
    import warnings

    warnings.simplefilter("ignore")  # decoders warn about what strangers send
    sys.path.insert(0, str(ROOT))
    from tests.helpers.bad_media import FORMATS, picture
    from tests.helpers.videos import CONTAINERS, video

    pictures = [picture(kind, (48, 32)) for kind in FORMATS]
    videos = [video(8, container=container, codec=codec) for container, codec in CONTAINERS[:5]]
    processor = describe(folder_of(None)).processor
    budget = MediaBudget(media=4, file_bytes=2**22, image_px=2**22, frames=16, video_s=60)

    def try_one(chance: random.Random) -> None:
        moving = chance.random() < 0.3
        data = damaged(chance.choice(videos if moving else pictures), chance, (b"\0" * 8, b"\xff" * 8))
        kind = "video" if moving else "image"
        processor.process([{"role": "user", "content": [{"type": kind, kind: data}]}], budget=budget)

    return try_one


def wire() -> Callable[[random.Random], None]:
    import numpy as np

    from foveal.serve.wire import Channel, pack_message, read_pack

    processor = describe(folder_of(None)).processor
    packed = processor.process([{"role": "user", "content": [np.zeros((40, 60, 3), np.uint8), "Hello"]}])
    first, second = socket.socketpair()
    head, arrays = pack_message(packed)
    Channel(first).send({"packed": head}, [a[:1] if a.ndim > 1 else a for a in arrays])
    first.close()
    sound = b""
    while piece := second.recv(65536):
        sound += piece
    second.close()

    def try_one(chance: random.Random) -> None:
        first, second = socket.socketpair()
        with first, second:
            first.sendall(damaged(sound, chance, (b"\xff\xff\xff\xff", b"[", b'"int64"', b"-1"))[:100_000])
            first.shutdown(socket.SHUT_WR)
            message, found = Channel(second).receive(LONGEST_S)
            read_pack(message.get("packed", {}), found)

    return try_one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = {"chat": chat, "boxes": boxes, "headers": headers, "wire": wire}
    parser.add_argument("target", choices=targets)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try_one = targets[arguments.target]()
    end, seed, refused, slowest = time.monotonic() + 60 * arguments.minutes, arguments.seed, 0, 0.0
    while time.monotonic() < end:
        begun = time.process_time()
        try:
            try_one(random.Random(seed))
        except FovealError:
            refused += 1
        except Exception:
            print(f"seed {seed} of {arguments.target}:", file=sys.stderr)
            raise
        slowest = max(slowest, time.process_time() - begun)
        seed += 1
    tried = seed - arguments.seed
    print(json.dumps({"target": arguments.target, "tried": tried, "refused": refused, "slowest_s": round(slowest, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
