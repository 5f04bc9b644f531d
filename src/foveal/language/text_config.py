"""Sizes of text encoders. No torch, so that configurations are read quickly."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from foveal.core.errors import ConfigError, neighbours

Pool: TypeAlias = Literal["eos", "highest", "last"]
"""Which token stands for its text: the first whose id is `eos`, the first with the highest id of its text
(CLIP's original rule; the closing token has the highest id of its vocabulary), or the last."""

POOLS = ("eos", "highest", "last")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of a text encoder (the text towers of CLIP and SigLIP).

    Attributes:
        vocab, width, depth, heads, mlp_width: as everywhere.
        context: rows of the position table, the most tokens of a text.
        embed: width of the result.
        causal: a token sees only those before it (CLIP).
        activation: "gelu", "gelu_tanh" or "quick_gelu".
        pool: which token stands for the text; see `Pool`.
        eos: the id that `pool="eos"` looks for.
        head_bias: the last linear map has a bias.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    context: int
    embed: int
    causal: bool
    activation: str = "gelu"
    pool: Pool = "last"
    eos: int | None = None
    eps: float = 1e-5
    head_bias: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"text width {self.width} is not divisible by its {self.heads} heads.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"text activation {self.activation!r}; {neighbours(self.activation, ACTIVATIONS)}")
        if self.pool not in POOLS:
            raise ConfigError(f"pool {self.pool!r}; {neighbours(self.pool, POOLS)}")
        if (self.pool == "eos") != (self.eos is not None):
            raise ConfigError(f"pool {self.pool!r} with eos={self.eos}: give the closing id with 'eos', and only then.")

    @property
    def parameters(self) -> int:
        """Numbers that the encoder learns."""
        d, f = self.width, self.mlp_width
        block = 2 * 2 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * f + (f + 1) * d
        head = (d + self.head_bias) * self.embed
        return (self.vocab + self.context) * d + self.depth * block + 2 * d + head
