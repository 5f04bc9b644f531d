"""A stand-in for CUDA graphs: what a function does is recorded operator by operator and played again without Python.

As with a CUDA graph, a play works on the tensors of the recording: whatever number the host had then is the number of
every play, and results land where they landed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Computes as usual and keeps every operator with its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        """Does it again; new results are written into the tensors of the recording."""
        for func, args, kwargs, out in self.tape:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tapes:
    """A `Capture`: computes once, as warming up does, then records. Or it fails, as a device may.

    `captures` counts the recordings, `plays` what was played. What is forgotten is not played again.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self.captures = self.plays = 0
        self.fails = fails
        self.generation = 0

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        compute()
        recorder = Recorder()
        with recorder:
            compute()
        generation = self.generation
        return lambda: self._play(recorder, generation)

    def forget(self) -> None:
        self.generation += 1

    def _play(self, recorder: Recorder, generation: int) -> None:
        assert generation == self.generation, "a recording that was forgotten is played"
        self.plays += 1
        with torch.inference_mode():
            recorder.play()
