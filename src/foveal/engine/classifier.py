"""What `foveal.load` returns for a classifier: pictures in, labels with probabilities out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.shapes import Float
from foveal.families.load import Loaded, save_folder
from foveal.nn.keep import Keep
from foveal.processing.pictures import PictureProcessor, Pictures
from foveal.vision.classifier import ImageClassifier


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One label for a picture: its number among the classes, and how probable the model takes it to be."""

    label: str
    probability: float
    index: int


class Classifier:
    """An image classifier with its processing.

    Attributes:
        network: the torch module (`vision`, `head`).
        processor: pictures to patches.
        labels: the name of every class; empty for a tower without a head.
        family, config: what it is.
        budget: bounds for media.
    """

    def __init__(self, loaded: Loaded, *, budget: MediaBudget) -> None:
        if not isinstance(loaded.network, ImageClassifier) or not isinstance(loaded.processor, PictureProcessor):
            raise ConfigError(f"{loaded.folder} holds a {loaded.family.name} model, which classifies no pictures.")
        self.network: ImageClassifier = loaded.network
        self.processor: PictureProcessor = loaded.processor
        self.family, self.config, self.budget = loaded.family, loaded.config, budget
        self.labels: tuple[str, ...] = loaded.config.labels

    def process(self, images: Any, *, side_px: int | None = None) -> Pictures:
        """One picture or a list of them as patches; see `PictureProcessor.pictures`."""
        return self.processor.pictures(images, budget=self.budget, side_px=side_px)

    def forward(
        self, pictures: Pictures, *, keep: Iterable[str] = ()
    ) -> tuple[Float[Tensor, "N _"], dict[str, Tensor]]:
        """Logits [N, labels] (without a head the features [N, D]), and the intermediate results named in `keep`."""
        wanted = Keep(keep)
        device = self.network.vision.positions.device
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(pictures.patches).to(device), pictures.grids, wanted)
        return logits, wanted.finish()

    def classify(
        self, images: Any, top: int = 5, *, side_px: int | None = None, batch: int = 32
    ) -> list[list[Guess]] | list[Guess]:
        """The `top` most probable labels, best first: a list for one picture, a list of lists for a list of them.

        Args:
            images: a file, data URL, bytes, PIL picture or array, or a list of these.
            top: how many labels a picture.
            side_px: side of the square that pictures are stretched to, if not the checkpoint's; the position table
                is resized (ViT paper, section 3.2).
            batch: pictures that are computed at a time.

        Raises:
            InputError: the model has no labels, `top` is not among them, or there is no picture.
            MediaError, BudgetError: a picture is damaged or too large.
        """
        if not self.labels:
            raise InputError("this checkpoint is a tower without a head, so it knows no labels; use forward().")
        if not 1 <= top <= len(self.labels):
            raise InputError(f"top is {top}; expected 1 to {len(self.labels)}, the number of labels.")
        if batch < 1:
            raise InputError(f"batch is {batch}; expected 1 or more.")
        sources = self.processor.sources(images)
        guesses: list[list[Guess]] = []
        for first in range(0, len(sources), batch):
            logits, _ = self.forward(self.process(sources[first : first + batch], side_px=side_px))
            best = logits.float().softmax(-1).topk(top)
            for values, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                pairs = zip(values, numbers, strict=True)
                guesses.append([Guess(label=self.labels[n], probability=p, index=n) for p, n in pairs])
        return guesses if self.processor.several(images) else guesses[0]

    def save(self, folder: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
        """Writes the model in the official layout, which other libraries open unchanged."""
        save_folder(
            Path(folder),
            family=self.family,
            config=self.config,
            network=self.network,
            processor=self.processor,
            generation={},
            shard_bytes=shard_bytes,
        )
