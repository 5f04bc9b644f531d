"""Qwen3-VL's network: features of inner blocks of the tower enter the first layers of the decoder (DeepStack)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveal.adapter.stacked import StackedMerger
from foveal.core.packed import Packed
from foveal.core.shapes import Float, Int
from foveal.families.vlm import VLM
from foveal.language.decoder import Decoder
from foveal.language.normed_config import NormedDecoderConfig
from foveal.nn.keep import Keep
from foveal.nn.mlp import GatedMLP
from foveal.nn.moe import FusedExperts, MoE
from foveal.nn.rope import Rotation, interleaved_rotation
from foveal.vision.stack import StackTower


class StackedVLM(VLM):
    """What `see` gives is [M, D * (1 + inner)]: a visual token, and what is added to it behind layer 0, 1, ..."""

    def __init__(self, vision: StackTower, adapter: StackedMerger, language: Decoder) -> None:
        super().__init__(vision, adapter, language)

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Visual tokens of all media, and behind each its additions."""
        patches = torch.from_numpy(batch.patches).to(self.device)
        features, inner = self.vision(patches, batch.grids, keep)
        tokens, added = self.adapter(features, inner)
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
            for number, values in enumerate(added):
                keep.offer(f"adapter.inner.{number}", values)
        return torch.cat((tokens, *added), dim=-1)

    def embed(self, batch: Packed, visual: Float[Tensor, "M W"] | None = None) -> Float[Tensor, "T D"]:
        """Embeddings of all tokens; of what `see` gave, the first D values are the visual tokens."""
        if batch.runs and visual is None:
            visual = self.see(batch)
        return super().embed(batch, None if visual is None else visual[:, : self.language.config.width])

    def deepen(self, batch: Packed, visual: Float[Tensor, "M W"] | None) -> Sequence[Float[Tensor, "T D"]]:
        """The additions in the places of their tokens, and 0 elsewhere."""
        if visual is None or not batch.runs:
            return ()
        _, *added = torch.tensor_split(visual, visual.shape[-1] // self.language.config.width, dim=-1)
        places = torch.cat([torch.arange(r.start, r.start + r.length) for r in batch.runs]).to(visual.device)
        return [a.new_zeros(len(batch.tokens), a.shape[-1]).index_copy(0, places, a) for a in added]


def feed_forward(config: NormedDecoderConfig, layer: int) -> nn.Module:
    """A layer's MLP, or its experts."""
    if config.routing is None or not config.mixed(layer):
        return GatedMLP(config.width, config.mlp_width)
    return MoE(config.width, config.expert_width, config.routing, experts=FusedExperts)


def rotary(config: NormedDecoderConfig, positions: Int[Tensor, "A T"]) -> Rotation:
    """The rotation of every token; the axes of positions take turns in the frequencies."""
    return interleaved_rotation(positions, head_dim=config.head_dim, theta=config.theta, section=config.section)
