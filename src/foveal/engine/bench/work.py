"""How much a phase has to read and to compute at least, whatever the implementation: `Work`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.core.packed import Packed
from foveal.engine.bench.roofs import Roofs
from foveal.families.base import Family
from foveal.families.vlm import VLM
from foveal.nn.moe import Router


@dataclass(frozen=True, kw_only=True)
class Work:
    """Bytes of weights and cache that are read once, and floating-point operations of matrix products."""

    read_bytes: float
    flop: float

    def bound(self, roofs: Roofs) -> tuple[str, float]:
        """Which roof binds, "memory" or "products", and the least seconds under it."""
        memory, products = self.read_bytes / roofs.read_bytes_s, self.flop / roofs.product_flop_s
        return ("memory", memory) if memory >= products else ("products", products)


class Estimate:
    """The work of a model's phases, from its configuration.

    Weights count once a pass, with `weight_bytes` each in the language model (2 for bfloat16, 1.5 where it is compact,
    1 for int8) and `tower_bytes` in tower and adapter; of experts those that the tokens can reach. An embedding table
    is looked up, not read, unless the head is tied to it. Attention counts the triangle that causality leaves.
    """

    def __init__(
        self, family: Family, config: Any, *, weight_bytes: float, tower_bytes: float, cache_item: int
    ) -> None:
        with torch.device("meta"):
            network = family.build(config).to("meta")  # fixed tables are computed, wherever they are built
        if not isinstance(network, VLM):
            raise TypeError(f"{family.name} builds a {type(network).__name__}, expected a VLM.")
        self._network, self._config = network, config.language
        self.weight_bytes, self._tower_bytes, self._cache_item = weight_bytes, tower_bytes, cache_item
        routers = [m for m in network.language.modules() if isinstance(m, Router)]
        self._chosen = routers[0].routing.chosen / routers[0].routing.experts if routers else 1.0
        matrices = [(name, p.numel()) for name, p in network.language.named_parameters() if p.ndim > 1]
        self._experts = sum(count for name, count in matrices if ".experts." in name)
        table = 0 if self._config.tied else network.language.embed.weight.numel()
        self._dense = sum(count for name, count in matrices if ".experts." not in name) - table
        self._head = network.language.embed.weight.numel()

    def vision(self, packed: Packed) -> Work:
        """All media of `packed` through tower and adapter; operations are counted on the real network's shapes."""
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            self._network.see(packed)
        parts: Sequence[nn.Module] = (self._network.vision, self._network.adapter)
        weights = sum(p.numel() for part in parts for p in part.parameters())
        return Work(read_bytes=weights * self._tower_bytes, flop=float(counter.get_total_flops()))

    def prefill(self, tokens: int) -> Work:
        """One prompt of `tokens` with scores after the last."""
        layers = self._dense - self._head + self._experts * self._chosen
        attention = self._attention(tokens) * (tokens + 1) / 2
        reached = self._experts * min(1.0, tokens * self._chosen)
        return Work(
            read_bytes=(self._dense + reached) * self.weight_bytes,
            flop=float(2 * layers * tokens + 2 * self._head + attention),
        )

    def decode(self, requests: int, context_tokens: int) -> Work:
        """One more token for each of `requests` that have `context_tokens`."""
        weights = self._dense + self._experts * min(1.0, requests * self._chosen)
        cache = self._config.cache_values * self._cache_item * requests * context_tokens
        active = self._dense + self._experts * self._chosen
        return Work(
            read_bytes=weights * self.weight_bytes + cache,
            flop=float(2 * active * requests + self._attention(requests) * context_tokens),
        )

    def _attention(self, queries: int) -> int:
        """Operations of `queries` tokens for each key: scores, and the weighted sum of values, in all layers."""
        config = self._config
        latent = getattr(config, "latent", None)
        width = 2 * config.head_dim if latent is None else latent.plain + latent.rotary + latent.value
        return 2 * config.depth * config.heads * width * queries
