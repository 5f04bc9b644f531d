"""Visual tokens of media that were seen before."""

from collections import OrderedDict

from torch import Tensor

from foveal.core.shapes import Float


class VisionCache:
    """Visual tokens by content key, at most `limit` bytes of them; the least recently used ones go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = self.hits = self.misses = 0
        self._found: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Float[Tensor, "M W"] | None:
        """The visual tokens of a medium, if they are known."""
        if key not in self._found:
            return None
        self.hits += 1
        self._found.move_to_end(key)
        return self._found[key]

    def put(self, key: bytes, tokens: Float[Tensor, "M W"]) -> None:
        """Keeps the visual tokens of a medium that had to be computed, unless they alone pass the limit."""
        self.misses += 1
        size = _bytes(tokens)
        if key in self._found or size > self.limit:
            return
        while self.bytes + size > self.limit:
            _, old = self._found.popitem(last=False)
            self.bytes -= _bytes(old)
        self._found[key] = tokens
        self.bytes += size

    def __len__(self) -> int:
        return len(self._found)


def _bytes(tokens: Tensor) -> int:
    return tokens.numel() * tokens.element_size()
