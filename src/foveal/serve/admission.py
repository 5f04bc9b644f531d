"""Who may come in: keys, places, and the body's size, all before any work is done."""

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from starlette.requests import Request

from foveal.core.errors import FovealError


class Denied(FovealError):
    """A request that is not served. `status` is HTTP's, `code` a word for programs, `retry_s` when to come again."""

    def __init__(
        self, status: int, code: str, text: str, *, retry_s: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.retry_s, self.param = status, code, retry_s, param


class Keys:
    """The API keys, as digests."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, header: str | None) -> bool:
        """Whether an `Authorization` header carries a key. The time it takes tells nothing about the keys."""
        scheme, _, given = (header or "").partition(" ")
        digest = _digest(given.strip().encode("latin-1", "replace"))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found and scheme.lower() == "bearer"


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


class Places:
    """The requests that are being served, counted. None waits here for long: the engine makes them wait their turn.

    Args:
        running: answers that are written at once.
        waiting: requests beyond them.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.running, self.waiting = running, waiting
        self.taken = 0
        self.draining = False
        self.refused = 0
        self._seconds = 1.0  # how long a request takes, on average over the last ones

    @contextmanager
    def take(self) -> Iterator["Place"]:
        """A place for one request. Raises `Denied` when there is none."""
        if self.draining:
            raise Denied(503, "stopping", "the server is stopping; ask another one.", retry_s=5)
        place = Place(self)
        place.grow(1)
        begun = time.monotonic()
        try:
            yield place
        finally:
            self.taken -= place.size
            self._seconds += 0.05 * (time.monotonic() - begun - self._seconds)

    def retry_s(self) -> int:
        """When a place will probably be free."""
        return max(1, min(60, math.ceil(self._seconds * self.waiting / max(1, self.running))))


class Place:
    """What one request occupies."""

    def __init__(self, places: Places) -> None:
        self._places, self.size = places, 0

    def grow(self, by: int) -> None:
        """Takes room for more answers. Raises `Denied` when there is none."""
        places = self._places
        alone = places.taken == self.size  # a request with many answers may come in alone, or it never could
        if not alone and places.taken + by > places.running + places.waiting:
            places.refused += 1
            raise Denied(429, "overloaded", "too many requests are waiting; try again later.", retry_s=places.retry_s())
        places.taken += by
        self.size += by


async def body_of(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        Denied: it is too large, too slow, or of another type than JSON.
        ClientDisconnect: the client left before it was whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Denied(415, "content_type", "the body has to be JSON; send Content-Type: application/json.")
    too_large = Denied(413, "too_large", f"the body has more than {most_bytes:,} bytes; send less or smaller media.")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most_bytes:
        raise too_large
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                pieces.append(piece)
                size += len(piece)
                if size > most_bytes:
                    raise too_large
    except TimeoutError:
        raise Denied(408, "slow", f"the body did not arrive within {seconds:g} s.") from None
    return b"".join(pieces)
