"""What is learned from a sample: how it becomes tensors, and its loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor, nn

from foveal.core.errors import ConfigError
from foveal.core.packed import Packed, join
from foveal.data.sample import Sample, messages_for
from foveal.nn.moe import balance_loss, watched
from foveal.processing.processor import Processor
from foveal.train.losses.next_token import next_token_loss, targets
from foveal.train.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Size:
    """What something takes: tokens, those of them that are visual, pictures and videos, and patches."""

    tokens: int
    visual: int
    media: int
    patches: int


@runtime_checkable
class Task(Protocol):
    """What a stage learns. Its loss is sum over terms of factor x (sum over packs) / (weight over packs)."""

    @property
    def whole(self) -> bool:
        """Whether a process takes its share of a step in one pack, however large, because pairs are compared."""
        ...

    def fitted(self, processor: Any, config: Any) -> "tuple[Task, Any]":
        """This task for a checkpoint's processor and configuration, and the processor with the settings it needs."""
        ...

    def read(self, processor: Any, sample: Sample, stage: Stage) -> Any:
        """A sample as a piece of a pack."""
        ...

    def nothing(self, processor: Any, stage: Stage) -> Any:
        """A piece with a small picture that teaches nothing, for a process that would otherwise have no picture."""
        ...

    def join(self, pieces: Sequence[Any]) -> Any:
        """Pieces as one pack."""
        ...

    def size(self, pack: Any) -> Size:
        """What a piece or a pack takes."""
        ...

    def weights(self, pack: Any) -> tuple[float, ...]:
        """The weight of every term, known before anything is computed."""
        ...

    def loss(self, network: Any, pack: Any) -> tuple[tuple[Tensor, float], ...]:
        """The sum of every term, and its factor in the loss."""
        ...


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """To say the answers, token by token.

    Attributes:
        labels: "answers": what the assistant says, with the token that ends its turn. "published": also the frame
            of every turn, as Qwen-VL's fine-tuning does.
        balance: factor of the loss that keeps experts evenly used (DeepSeek-V2, eq. 23); None takes the one that
            the model's configuration states, if any.
    """

    labels: Literal["answers", "published"] = "answers"
    balance: float | None = None

    @property
    def whole(self) -> bool:
        return False

    def fitted(self, processor: Any, config: Any) -> tuple["NextToken", Processor]:
        """See `Task.fitted`. Raises `ConfigError` for a model that does not talk or has no such labels."""
        if not isinstance(processor, Processor):
            raise ConfigError("this model answers nothing, so next tokens cannot be learned; choose another task.")
        task = replace(self, balance=getattr(config, "balance", 0.0)) if self.balance is None else self
        if self.labels == "answers":
            return task, processor
        chat: Any = processor.chat
        if not hasattr(chat, "labels"):
            raise ConfigError(f"labels={self.labels!r}: this model's chat format has no such labels; Qwen-VL's has.")
        return task, processor.changed(chat=replace(chat, labels=self.labels))

    def read(self, processor: Processor, sample: Sample, stage: Stage) -> Packed:
        options: dict[str, Any] = {} if stage.pixels is None else stage.pixels.options
        return processor.process(messages_for(sample, processor.chat), generate=False, budget=stage.budget, **options)

    def nothing(self, processor: Processor, stage: Stage) -> Packed:
        """See `Task.nothing`: a turn with a small black picture of which no token is learned."""
        picture = {"type": "image", "image": Image.new("RGB", (56, 56))}
        options: dict[str, Any] = {} if stage.pixels is None else stage.pixels.options
        messages = [{"role": "user", "content": [picture]}]
        pack = processor.process(messages, generate=False, budget=stage.budget, **options)
        return replace(pack, spans=tuple(replace(span, learned=False) for span in pack.spans))

    def join(self, pieces: Sequence[Packed]) -> Packed:
        return join(pieces)

    def size(self, pack: Packed) -> Size:
        visual = sum(m.tokens for m in pack.media)
        return Size(tokens=len(pack.tokens), visual=visual, media=len(pack.media), patches=len(pack.patches))

    def weights(self, pack: Packed) -> tuple[float, ...]:
        said = targets(pack).weight
        return (said, float(sum(_taught(pack)))) if self.balance else (said,)

    def loss(self, network: nn.Module, pack: Packed) -> tuple[tuple[Tensor, float], ...]:
        """See `Task.loss`: the learned tokens, and how unevenly experts are used where `balance` is above 0."""
        goal = targets(pack)
        if not self.balance:
            return ((next_token_loss(network(pack, at=goal.places).logits, goal).sum, 1.0),)
        with watched(network) as routed:
            scores = network(pack, at=goal.places).logits
        said = next_token_loss(scores, goal).sum
        starts, taught = pack.starts.tolist(), _taught(pack)
        uneven = sum((balance_loss(layer, starts, taught) for layer in routed), said.new_zeros(()))
        return (said, 1.0), (uneven * sum(taught), self.balance)


def _taught(pack: Packed) -> list[bool]:
    """For every sequence of a pack whether anything of it is learned; `NextToken.nothing` makes one that is not."""
    begins = [span.start for span in pack.spans if span.learned and span.start < span.stop]
    found = set(np.searchsorted(pack.starts, begins, side="right").tolist())
    return [number + 1 in found for number in range(len(pack))]
