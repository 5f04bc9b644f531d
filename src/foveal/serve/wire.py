"""Messages between the server and its children: one JSON object and any number of raw arrays, over a local socket.

    4 bytes: length of the JSON ─ JSON: {"message": ..., "arrays": [[type, shape], ...]} ─ bytes of each array, in order

Nothing that is received is run or looked up by name. A child that has gone wrong can send nonsense, which is an error,
but neither claim more memory than `LIMIT_BYTES` nor anything but numbers.
"""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveal.core.box import ImageView
from foveal.core.errors import FovealError
from foveal.core.packed import Medium, Packed, Run, Span

LIMIT_BYTES = 2 * 1024**3
_LENGTH = struct.Struct("<I")
_TYPES = {name: np.dtype(name) for name in ("uint8", "int32", "int64", "float32")}
_PACKED = ("tokens", "positions", "starts", "deltas", "patches", "grids")


class WireError(FovealError):
    """The other side is gone, too late, or sends what is no message."""


class Channel:
    """One end of a connection to a child. `send` may be called from several threads, `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._lock = sock, threading.Lock()

    def send(self, message: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """Sends one message. Raises `WireError` when the other side is gone."""
        whole = [np.asarray(a, order="C") for a in arrays]
        head = json.dumps({"message": message, "arrays": [[a.dtype.name, a.shape] for a in whole]}).encode()
        if len(head) + sum(a.nbytes for a in whole) > LIMIT_BYTES:
            raise WireError(f"a message has more than {LIMIT_BYTES:,} bytes; send fewer or smaller media.")
        try:
            with self._lock:
                self._socket.sendall(_LENGTH.pack(len(head)) + head)
                for array in whole:
                    if array.nbytes:
                        self._socket.sendall(_bytes(array))
        except OSError as error:
            raise WireError(f"the other process cannot be reached: {error}.") from None

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], list[np.ndarray]]:
        """The next message. `timeout_s` bounds each wait for bytes. Raises `WireError` at the end of the connection."""
        try:
            self._socket.settimeout(timeout_s)
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            head = json.loads(self._exactly(length))
            arrays, left = [], LIMIT_BYTES
            for name, shape in head["arrays"]:
                array, left = self._array(_TYPES[name], shape, left)
                arrays.append(array)
            return dict(head["message"]), arrays
        except TimeoutError:
            raise WireError("the other process takes too long.") from None
        except (OSError, EOFError) as error:
            raise WireError(f"the other process is gone: {error}.") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise WireError(f"the other process sent what is no message: {type(error).__name__}.") from None

    def close(self) -> None:
        """Ends the connection for both sides; a `receive` that waits ends too."""
        with contextlib.suppress(OSError):  # it was closed from the other side
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _array(self, kind: np.dtype, shape: Sequence[int], left: int) -> tuple[np.ndarray, int]:
        sides = [int(side) for side in shape]
        size = kind.itemsize
        for side in sides:
            size *= side
        if size > left or any(side < 0 for side in sides) or len(sides) > 8:
            raise ValueError(shape)
        array = np.empty(sides, kind)
        if array.nbytes:
            self._fill(_bytes(array))
        return array, left - size

    def _exactly(self, count: int) -> bytes:
        if count > LIMIT_BYTES:
            raise ValueError(count)
        found = bytearray(count)
        self._fill(memoryview(found))
        return bytes(found)

    def _fill(self, place: memoryview) -> None:
        while place:
            count = self._socket.recv_into(place)
            if not count:
                raise EOFError("end of the connection")
            place = place[count:]


def _bytes(array: np.ndarray) -> memoryview:
    return array.data.cast("B")


def pack_message(packed: Packed) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A `Packed` as a message and arrays."""
    names = sorted(packed.extra)
    message = {
        "media": [asdict(m) for m in packed.media],
        "runs": [[r.start, r.length, r.medium] for r in packed.runs],
        "spans": [[s.start, s.stop, s.role, s.learned] for s in packed.spans],
        "extra": names,
    }
    return message, [*(getattr(packed, name) for name in _PACKED), *(np.asarray(packed.extra[n]) for n in names)]


def read_pack(message: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> Packed:
    """What `pack_message` wrote. Raises `WireError` for anything else."""
    try:
        fixed = dict(zip(_PACKED, arrays, strict=False))
        extra = dict(zip(message["extra"], arrays[len(_PACKED) :], strict=True))
        return Packed(
            **fixed,
            media=tuple(_medium(m) for m in message["media"]),
            runs=tuple(Run(start=s, length=n, medium=m) for s, n, m in message["runs"]),
            spans=tuple(Span(start=a, stop=b, role=r, learned=t) for a, b, r, t in message["spans"]),
            extra=extra,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"the other process sent what is no pack: {error!r}.") from None


def _medium(values: Mapping[str, Any]) -> Medium:
    view = ImageView(original=tuple(values["view"]["original"]), processed=tuple(values["view"]["processed"]))
    return Medium(**{**values, "view": view, "grid": tuple(values["grid"]), "times_s": tuple(values["times_s"])})
