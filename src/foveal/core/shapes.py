"""Array types with shapes for signatures, e.g. `Float[Tensor, "T D"]`.

Legend: B batch, T text tokens, P patches, M merged (visual) tokens, D width, H heads, K head size,
V vocabulary, N items, A position axes. jaxtyping checks them under pytest; where it was not imported
before, which takes a tenth of a second, the names below are plain markers.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:  # who checks shapes has imported it before
    from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
else:

    class _Marker:
        def __class_getitem__(cls, item: Any) -> Any:
            return item[0]

    class Bool(_Marker): ...

    class Float(_Marker): ...

    class Float32(_Marker): ...

    class Int(_Marker): ...

    class Int64(_Marker): ...

    class UInt8(_Marker): ...


__all__ = ["Bool", "Float", "Float32", "Int", "Int64", "UInt8"]
