"""Sizes of a Qwen3 decoder, dense or with experts. No torch, so that planning is quick."""

from dataclasses import dataclass

from foveal.core.errors import ConfigError
from foveal.language.config import DecoderConfig
from foveal.nn.routing import Routing


@dataclass(frozen=True, kw_only=True)
class NormedDecoderConfig(DecoderConfig):
    """Queries and keys are normalised head by head; a head's size does not follow from the width.

    Attributes:
        routing: how experts are chosen; None: every layer is dense.
        expert_width: hidden width of an expert.
        dense: layers that have no experts all the same.
        every: of the layers, those whose number, counted from 1, is divisible by it have experts.
        deep: behind how many of the first layers something is added to visual tokens (DeepStack).
    """

    section: tuple[int, ...] = (24, 20, 20)
    qkv_bias: bool = False
    theta: float = 5_000_000.0
    context: int = 262144
    routing: Routing | None = None
    expert_width: int = 0
    dense: tuple[int, ...] = ()
    every: int = 1
    deep: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.routing is None) != (self.expert_width == 0):
            raise ConfigError(f"expert_width is {self.expert_width}; experts need a width and a routing, or neither.")

    def mixed(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.routing is not None and layer not in self.dense and (layer + 1) % self.every == 0

    @property
    def parameters(self) -> int:
        """Numbers that the decoder learns; a tied head is the embedding and counts once."""
        norms = self.depth * 2 * self.head_dim
        if self.routing is None:
            return super().parameters + norms
        dense, experts = 3 * self.width * self.mlp_width, self.routing.experts
        mixed = experts * (3 * self.width * self.expert_width + self.width)
        return super().parameters + norms + (mixed - dense) * sum(self.mixed(i) for i in range(self.depth))

    def work_bytes(self, tokens: int, item_bytes: int) -> int:
        """Peak memory of the intermediate results of a prefill without gradients, weights and cache aside.

        Beside the widest place of a dense layer or of experts stands what is added behind the first layers. Experts
        hold a copy of a token before and after each that it takes, or the results weighed in float32.
        """
        d, added = self.width, self.deep * self.width
        base = super().work_bytes(tokens, item_bytes) + tokens * item_bytes * added
        if self.routing is None:
            return base
        k = self.routing.chosen
        weighed = k * d + (0 if item_bytes == 4 else (k + 1) * d * 4 / item_bytes)
        chosen = (28 * k + 4 * self.routing.experts) / item_bytes
        widest = 4 * d + max(2 * k * d + 4 * self.expert_width, weighed) + chosen + added + 2 * self.head_dim
        return max(base, int(tokens * item_bytes * widest))
