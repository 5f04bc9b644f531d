"""The network that all vision-language families share: vision -> adapter -> language."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foveal.core.errors import InputError
from foveal.core.packed import Packed
from foveal.core.shapes import Float, Int64
from foveal.language.cache import Cache
from foveal.language.decoder import Decoder
from foveal.nn.keep import Keep


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: scores of the next token, after every token [T, V] or after those that were asked for.
        kept: the intermediate results that were asked for, by name.
    """

    logits: Tensor
    kept: dict[str, Tensor]


class VLM(nn.Module):
    """Vision tower, adapter and decoder. Training, generation and evaluation use the same `forward`.

    A family whose media take another way overrides `see`; one whose later tokens are numbered otherwise
    overrides `places`; one that feeds layers beside the embeddings overrides `deepen`.
    """

    def __init__(self, vision: nn.Module, adapter: nn.Module, language: Decoder) -> None:
        super().__init__()
        self.vision = vision
        self.adapter = adapter
        self.language = language

    @property
    def device(self) -> torch.device:
        return self.language.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed.weight.dtype

    def see(self, batch: Packed, keep: Keep | None = None) -> Float[Tensor, "M D"]:
        """Visual tokens of all media, in the order of the batch."""
        patches = torch.from_numpy(batch.patches).to(self.device)
        features = self.vision(patches, batch.grids, keep)
        tokens = self.adapter(features)
        if keep:
            keep.offer("vision", features)
            keep.offer("adapter", tokens)
        return tokens

    def places(self, batch: Packed, sequences: Sequence[int], lengths: Sequence[int]) -> Int64[np.ndarray, "A B"]:
        """Positions of the next token of some sequences of `batch`, which have `lengths` tokens by now."""
        return np.tile(batch.deltas[list(sequences)] + np.asarray(lengths, np.int64), (len(batch.positions), 1))

    def marks(self, positions: Int64[np.ndarray, "A T"]) -> Int64[np.ndarray, "A T"]:
        """What the keys and values of tokens depend on beside the tokens up to them: here their positions.

        Two sequences that begin with the same tokens, media and marks leave the same there.
        """
        return positions

    def step(
        self, batch: Packed, sequences: Sequence[int], tokens: Sequence[int], cache: Cache
    ) -> Float[Tensor, "B V"]:
        """Scores after one more token of every sequence that `cache` holds, which are `sequences` of `batch`."""
        x = self.language.embed(torch.tensor(tokens, device=self.device))
        positions = torch.from_numpy(self.places(batch, sequences, cache.lengths)).to(self.device)
        return self.language.logits(self.language(x, positions, range(len(tokens) + 1), cache=cache))

    def deepen(self, batch: Packed, visual: Float[Tensor, "M D"] | None) -> Sequence[Float[Tensor, "T D"]]:
        """What is added to the results of the first layers of the decoder; here nothing."""
        return ()

    def embed(self, batch: Packed, visual: Float[Tensor, "M D"] | None = None) -> Float[Tensor, "T D"]:
        """Embeddings of all tokens, with visual tokens (computed when not given) in the places of their pads."""
        x = self.language.embed(torch.from_numpy(batch.tokens).to(self.device))
        if not batch.runs:
            return x
        if visual is None:
            visual = self.see(batch)
        places = torch.cat([torch.arange(r.start, r.start + r.length) for r in batch.runs])
        if len(places) != len(visual):
            raise InputError(
                f"the prompt has {len(places)} places for visual tokens but the media give {len(visual)}; "
                "process prompt and media together."
            )
        return x.index_copy(0, places.to(self.device), visual.to(x.dtype))

    def forward(
        self,
        batch: Packed,
        *,
        keep: Iterable[str] = (),
        cache: Cache | None = None,
        at: Int64[np.ndarray, "S"] | None = None,
    ) -> Output:
        """Scores the next token after every token of the batch.

        Args:
            batch: sequences and media, from `Processor.process`.
            keep: names of intermediate results to return: "vision" [P, C], "adapter" [M, D],
                "embeddings" [T, D], "layers.N" [T, D], "norm" [T, D].
            cache: where to leave keys and values for later tokens; one place a sequence.
            at: score only after these tokens of the pack; training and prefill need few of them.

        Raises:
            InputError: an unknown name in `keep`, or a batch that does not fit.
        """
        taps = Keep(keep)
        visual = self.see(batch, taps) if len(batch.media) else None
        x = self.embed(batch, visual)
        taps.offer("embeddings", x)
        positions = torch.from_numpy(batch.positions).to(self.device)
        starts = batch.starts.tolist()
        deep = self.deepen(batch, visual)
        hidden = self.language(x, positions, starts, cache=cache, keep=taps, deep=deep)
        if at is not None:
            hidden = hidden[torch.from_numpy(at).to(self.device)]
        return Output(self.language.logits(hidden), taps.finish())
