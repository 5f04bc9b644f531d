"""The text encoder of dual encoders: one vector for each text (CLIP, Radford et al. 2021, section 2.4; SigLIP).

Texts lie end to end as everywhere, and each attends within itself. Where a published model reads padding as
part of the text (SigLIP), the padding is part of the sequence here too; otherwise there is none.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.shapes import Float, Int64
from foveal.language.text_config import TextConfig
from foveal.nn.attention import attend_packed
from foveal.nn.keep import Keep
from foveal.nn.linear import Linear
from foveal.nn.mlp import MLP, Activation, quick_gelu
from foveal.nn.norm import LayerNorm

ACTIVATION: Mapping[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class TextAttention(nn.Module):
    """Self-attention within each text, q, k and v from one projection."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Float[Tensor, "T D"], starts: Sequence[int]) -> Float[Tensor, "T D"]:
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        return self.out(attend_packed(q, k, v, starts, causal=self.causal).flatten(1))


class TextLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = LayerNorm(c.width, c.eps)
        self.attention = TextAttention(c.width, c.heads, causal=c.causal)
        self.norm2 = LayerNorm(c.width, c.eps)
        self.mlp = MLP(c.width, c.mlp_width, ACTIVATION[c.activation])

    def forward(self, x: Float[Tensor, "T D"], starts: Sequence[int]) -> Float[Tensor, "T D"]:
        x = x + self.attention(self.norm1(x), starts)
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Token ids [T] of B texts -> one vector each [B, E]: embeddings, layers, norm, pooled token, linear map."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab, c.width)
        self.positions = nn.Parameter(torch.empty(c.context, c.width))
        self.layers = nn.ModuleList(TextLayer(c) for _ in range(c.depth))
        self.norm = LayerNorm(c.width, c.eps)
        self.head = Linear(c.width, c.embed, bias=c.head_bias)
        nn.init.normal_(self.embed.weight, std=0.02)  # CLIP's own start
        nn.init.normal_(self.positions, std=0.01)

    def forward(
        self, tokens: Int64[np.ndarray, "T"], starts: Int64[np.ndarray, "B1"], keep: Keep | None = None
    ) -> Float[Tensor, "B E"]:
        """Vectors of texts, not normalised; `starts` holds the boundaries of the texts.

        Offers "text.embeddings", "text.layers.N" and "text.norm" [T, D] to `keep`. Raises `InputError` for a
        text that is empty, longer than the position table, or without the closing token that is looked for.
        """
        lengths = np.diff(starts)
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= self.config.context:
            raise InputError(
                f"texts of {lengths.min()} to {lengths.max()} tokens; expected 1 to {self.config.context} in each."
            )
        place = self.embed.weight.device
        rows = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths] or [np.empty(0, np.int64)]))
        x = self.embed(torch.from_numpy(tokens).to(place)) + self.positions[rows.to(place)]
        if keep:
            keep.offer("text.embeddings", x)
        bounds = starts.tolist()
        for index, layer in enumerate(self.layers):
            x = layer(x, bounds)
            if keep:
                keep.offer(f"text.layers.{index}", x)
        if keep:
            keep.offer("text.norm", self.norm(x))
        pooled = self.norm(x[torch.from_numpy(self.pooled(tokens, starts)).to(place)])
        return self.head(pooled)

    def pooled(self, tokens: Int64[np.ndarray, "T"], starts: Int64[np.ndarray, "B1"]) -> Int64[np.ndarray, "B"]:
        """Index in the pack of the token that stands for each text."""
        c = self.config
        if c.pool == "last":
            return starts[1:] - 1
        found = np.empty(len(starts) - 1, np.int64)
        for index, (start, stop) in enumerate(itertools.pairwise(starts)):
            text = tokens[start:stop]
            at = int(text.argmax()) if c.pool == "highest" else int((text == c.eos).argmax())
            if c.pool == "eos" and text[at] != c.eos:
                raise InputError(f"text {index} has no closing token (id {c.eos}); encode it with the processor.")
            found[index] = start + at
        return found
