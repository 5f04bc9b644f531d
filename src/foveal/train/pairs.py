"""Pictures and texts that belong together: what CLIP and SigLIP learn (see `foveal.train.losses`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from foveal.core.errors import ConfigError, InputError
from foveal.core.shapes import Float32, Int64
from foveal.data.sample import Sample
from foveal.families.dual import DualEncoder
from foveal.processing.pictures import PictureProcessor
from foveal.train.losses.contrastive import contrastive_loss
from foveal.train.losses.sigmoid import Exchange, sigmoid_loss
from foveal.train.stage import Stage
from foveal.train.task import Size

HIGHEST = math.log(100.0)
"""The logit scale grows no further (CLIP, section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N pictures end to end, and their N texts. `grids` is [N, 3], `starts` [N + 1]."""

    patches: Float32[np.ndarray, "P C"]
    grids: Int64[np.ndarray, "N 3"]
    tokens: Int64[np.ndarray, "T"]
    starts: Int64[np.ndarray, "N1"]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """To tell which text belongs to which picture. A sample is a picture, and what the assistant says of it.

    Attributes:
        kind: "softmax" (CLIP) or "sigmoid" (SigLIP).
        chunk: largest side of a block of logits; None: all pairs at once.
        exchange: how texts travel between processes ("sigmoid" only, see `foveal.train.losses.sigmoid`).
        truncate: texts that are too long lose their end; otherwise they are unfit.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    chunk: int | None = None
    exchange: Exchange = "bidir"
    truncate: bool = True

    @property
    def whole(self) -> bool:
        return True

    def fitted(self, processor: Any, config: Any) -> tuple["Contrast", PictureProcessor]:
        """See `Task.fitted`. Raises `ConfigError` for a model without two towers."""
        if not isinstance(processor, PictureProcessor):
            raise ConfigError("this model has no towers for pictures and texts to compare; choose another task.")
        _ = processor.captions  # a family without a text tower is a named error
        return self, processor

    def read(self, processor: PictureProcessor, sample: Sample, stage: Stage) -> Pairs:
        """See `Task.read`. Raises `InputError` for a sample without exactly one picture."""
        media = [part for part in sample.media if part["type"] == "image"]
        if len(media) != 1:
            raise InputError(f"a pair has one picture; this sample has {len(media)}.")
        words = [p["text"] for m in sample.messages if m["role"] == "assistant" for p in m["content"] if "text" in p]
        seen = processor.pictures(media[0]["image"], budget=stage.budget)
        said = processor.texts(" ".join(words), truncate=self.truncate)
        return Pairs(patches=seen.patches, grids=seen.grids, tokens=said.tokens, starts=said.starts)

    def nothing(self, processor: PictureProcessor, stage: Stage) -> Pairs:
        raise ConfigError(f"stage {stage.name}: a process has no pair; give every process at least one (batch).")

    def join(self, pieces: Sequence[Pairs]) -> Pairs:
        """See `Task.join`; pairs are sorted by the length of their texts."""
        pieces = sorted(pieces, key=lambda piece: len(piece.tokens))  # texts of one length are computed as one batch
        ends = np.cumsum([0, *(len(p.tokens) for p in pieces)])
        starts = [p.starts[1:] + end for p, end in zip(pieces, ends, strict=False)]
        return Pairs(
            patches=np.concatenate([p.patches for p in pieces]),
            grids=np.concatenate([p.grids for p in pieces]),
            tokens=np.concatenate([p.tokens for p in pieces]),
            starts=np.concatenate([np.zeros(1, np.int64), *starts]),
        )

    def size(self, pack: Pairs) -> Size:
        return Size(tokens=len(pack.tokens), visual=0, media=len(pack.grids), patches=len(pack.patches))

    def weights(self, pack: Pairs) -> tuple[float, ...]:
        return (float(len(pack.grids)),)

    def loss(self, network: DualEncoder, pack: Pairs) -> tuple[tuple[Tensor, float], ...]:
        """See `Task.loss`; the scale is held below 100 (CLIP, section 2.5)."""
        patches = torch.from_numpy(pack.patches).to(network.device)
        images, texts = network(patches, pack.grids, pack.tokens, pack.starts)
        scale = network.logit_scale.float().clamp(max=HIGHEST).exp()
        if self.kind == "softmax":
            mean = contrastive_loss(images, texts, scale, chunk=self.chunk)
        elif network.logit_bias is None:
            raise ConfigError("the sigmoid loss needs a learned offset, which this model lacks; use the softmax loss.")
        else:
            bias = network.logit_bias.float()
            mean = sigmoid_loss(images, texts, scale, bias, exchange=self.exchange, chunk=self.chunk)
        return ((mean * len(pack.grids), 1.0),)
