import json
import socket
import struct
import threading

import numpy as np
import pytest

from foveal.serve.wire import Channel, WireError, pack_message, read_pack

WAIT_S = 20.0


@pytest.fixture
def ends():
    first, second = socket.socketpair()
    with first, second:
        yield first, second


def test_messages_and_arrays_arrive_as_they_were(ends):
    ours, theirs = Channel(ends[0]), Channel(ends[1])
    arrays = [np.arange(200_000, dtype=np.int64).reshape(2, -1).T, np.zeros((0, 3), np.float32), np.array(5, np.int32)]
    sender = threading.Thread(target=ours.send, args=({"a": ["ü", None]}, arrays))
    sender.start()
    message, found = theirs.receive(WAIT_S)
    sender.join(WAIT_S)
    assert message == {"a": ["ü", None]}
    for sent, came in zip(arrays, found, strict=True):
        assert (sent == came).all()
        assert sent.dtype == came.dtype
        assert sent.shape == came.shape


def framed(value: object, tail: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<I", len(text)) + text + tail


@pytest.mark.parametrize(
    "raw",
    [
        framed(b"nonsense"),
        framed(b"\xff\xfe"),
        framed([]),
        framed({"message": {}}),
        framed({"message": {}, "arrays": [["object", [1]]]}),
        framed({"message": {}, "arrays": [["float32", [-1, -4]]]}),
        framed({"message": {}, "arrays": [["float32", [2**40]]]}),
        framed({"message": {}, "arrays": [["float32", [2**16, 2**16]]]}),
        framed({"message": {}, "arrays": [["uint8", [1] * 9]]}),
        framed({"message": {}, "arrays": [["float32", ["a"]]]}),
        framed({"message": 5, "arrays": []}),
        framed(b"[" * 100_000),
        struct.pack("<I", 2**32 - 1),
        framed({"message": {}, "arrays": [["uint8", [9]]]}, b"123"),
        b"\x01",
        b"",
    ],
)
def test_nonsense_is_an_error_and_takes_no_memory(ends, raw):
    ends[0].sendall(raw)
    ends[0].close()
    with pytest.raises(WireError):
        Channel(ends[1]).receive(WAIT_S)


def test_who_waits_too_long_or_speaks_to_nobody_is_told(ends):
    with pytest.raises(WireError, match="too long"):
        Channel(ends[1]).receive(0.01)
    ends[1].close()
    with pytest.raises(WireError, match="cannot be reached"):
        Channel(ends[0]).send({"text": "x" * 10**6})


EMPTY = {"media": [], "runs": [], "spans": []}


@pytest.mark.parametrize("message", [{}, EMPTY, {**EMPTY, "media": [{}], "extra": []}])
def test_what_is_no_pack_is_an_error(message):
    with pytest.raises(WireError):
        read_pack(message, [])


def test_a_pack_survives_the_way():
    from foveal.families.describe import describe, folder_of

    processor = describe(folder_of(None)).processor
    picture = np.zeros((60, 80, 3), np.uint8)
    packed = processor.process([{"role": "user", "content": [picture, "What?"]}])
    message, arrays = pack_message(packed)
    again = read_pack(json.loads(json.dumps(message)), arrays)
    assert again.media == packed.media
    assert again.runs == packed.runs
    assert again.spans == packed.spans
    assert (again.patches == packed.patches).all()
