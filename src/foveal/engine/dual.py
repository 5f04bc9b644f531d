"""What `foveal.load` returns for CLIP and SigLIP: pictures and texts as vectors that can be compared."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.core.errors import ConfigError, InputError
from foveal.core.media import MediaBudget
from foveal.core.shapes import Float
from foveal.families.dual import DualEncoder
from foveal.families.load import Loaded, save_folder
from foveal.nn.keep import Keep
from foveal.processing.pictures import PictureProcessor, Pictures, Texts

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""

TEMPLATES = ("a photo of a {}.",)
"""The prompt with which CLIP's labels become sentences, if none is given (CLIP, section 3.1.4)."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How well every label fits one picture.

    Attributes:
        label: the one that fits best.
        probability: of that one.
        probabilities: of all labels, in the order in which they were given.
    """

    label: str
    probability: float
    probabilities: dict[str, float]


class Dual:
    """A model with an image tower and a text tower.

    Attributes:
        network: the torch module (`vision`, `text`, `logit_scale`).
        processor: pictures to patches, texts to tokens.
        family, config: what it is.
        budget: bounds for media. How many pictures are embedded by one call has no bound; they are opened batch by
            batch.
    """

    def __init__(self, loaded: Loaded, *, budget: MediaBudget) -> None:
        if not isinstance(loaded.network, DualEncoder) or not isinstance(loaded.processor, PictureProcessor):
            raise ConfigError(f"{loaded.folder} holds a {loaded.family.name} model, which has no two towers.")
        self.network: DualEncoder = loaded.network
        self.processor: PictureProcessor = loaded.processor
        self.family, self.config, self.budget = loaded.family, loaded.config, budget

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text can become."""
        return self.processor.special_ids

    def process_images(self, images: Any) -> Pictures:
        """One picture or a list of them as patches; see `PictureProcessor.pictures`."""
        return self.processor.pictures(images, budget=self.budget)

    def process_text(self, texts: str | Sequence[str], *, truncate: bool = False) -> Texts:
        """One text or a list of them as token ids; see `PictureProcessor.texts`."""
        return self.processor.texts(texts, truncate=truncate)

    def forward(
        self, batch: Pictures | Texts, *, keep: Iterable[str] = ()
    ) -> tuple[Float[Tensor, "N E"], dict[str, Tensor]]:
        """Vectors of length 1 of pictures or of texts, and the intermediate results named in `keep`.

        Pictures offer "vision.embeddings" and "vision.blocks.N" (a residual network "vision.stem" and
        "vision.stages.N") and "image", texts "text.embeddings", "text.layers.N", "text.norm" and "text".
        """
        wanted = Keep(keep)
        with torch.inference_mode():
            if isinstance(batch, Texts):
                vectors = self.network.embed_text(batch.tokens, batch.starts, wanted)
            else:
                patches = torch.from_numpy(batch.patches).to(self.network.device)
                vectors = self.network.embed_images(patches, batch.grids, wanted)
        return vectors, wanted.finish()

    def embed_images(self, images: Any, *, batch: int = 32, progress: Progress | None = None) -> Float[Tensor, "N E"]:
        """Vectors of length 1 of one picture or several (files, data URLs, bytes, PIL pictures, arrays), in float32.

        Args:
            batch: pictures that are computed at a time.
            progress: is called after each batch.

        Raises:
            InputError: there is no picture; MediaError, BudgetError: one is damaged or too large.
        """
        sources = self.processor.sources(images)
        parts = []
        for first, some in _batches(sources, min(_above_0(batch), self.budget.media)):
            parts.append(self.forward(self.process_images(some))[0])
            if progress is not None:
                progress(first + len(some), len(sources))
        return torch.cat(parts)

    def embed_text(
        self, texts: str | Sequence[str], *, truncate: bool = False, batch: int = 256
    ) -> Float[Tensor, "N E"]:
        """Vectors of length 1 of one text or several, in float32. Nothing in a text is special.

        Raises:
            InputError: there is no text; ContextError: one is too long, and `truncate` does not say to cut it.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            raise InputError("there is no text; pass at least one.")
        parts = []
        for _, some in _batches(several, _above_0(batch)):
            parts.append(self.forward(self.process_text(some, truncate=truncate))[0])
        return torch.cat(parts)

    def similarity(self, images: Any, texts: Any) -> Float[Tensor, "N B"]:
        """Logits of every picture with every text: the scaled cosine, with the model's offset if it has one.

        Both may be given as vectors too, from `embed_images` and `embed_text`.
        """
        seen = images if isinstance(images, Tensor) else self.embed_images(images)
        said = texts if isinstance(texts, Tensor) else self.embed_text(texts)
        with torch.inference_mode():
            return self.network.similarity(seen.to(self.network.device), said.to(self.network.device))

    def label_vectors(self, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Float[Tensor, "L E"]:
        """One vector a label: the mean over its sentences, of length 1 again (CLIP, section 3.1.4).

        A template holds `{}` once, where the label goes. Raises `InputError` for labels or templates that are none.
        """
        if isinstance(labels, str) or not labels or not all(isinstance(v, str) and v.strip() for v in labels):
            raise InputError(f"labels are {labels!r}; expected a list of texts, at least one and none of them empty.")
        if len(set(labels)) < len(labels):
            raise InputError("a label is given twice; give each once.")
        if isinstance(templates, str) or not templates:
            raise InputError(f"templates are {templates!r}; expected a list of texts with {{}} for the label.")
        for template in templates:
            if template.count("{}") != 1:
                raise InputError(
                    f"template {template!r} has {template.count('{}')} places for the label; write {{}} once."
                )
        sentences = [template.replace("{}", label) for label in labels for template in templates]
        vectors = self.embed_text(sentences).view(len(labels), len(templates), -1)
        return F.normalize(vectors.mean(1), dim=-1)

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        batch: int = 32,
        progress: Progress | None = None,
    ) -> list[Match]:
        """How well labels fit pictures that no label was trained for (CLIP, section 3.1).

        Probabilities are a softmax over the labels; for a model with an offset (SigLIP), which was trained on each
        pair alone, every label has its own, and they need not sum to 1.
        """
        classes = self.label_vectors(labels, templates)
        logits = self.similarity(self.embed_images(images, batch=batch, progress=progress), classes)
        values = logits.softmax(-1) if self.network.logit_bias is None else logits.sigmoid()
        found = []
        for row in values.tolist():
            best = max(range(len(labels)), key=row.__getitem__)
            probabilities = dict(zip(labels, row, strict=True))
            found.append(Match(label=labels[best], probability=row[best], probabilities=probabilities))
        return found

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


def _above_0(batch: int) -> int:
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more.")
    return batch


def _batches(items: list[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Index of the first, and up to `size` items."""
    for first in range(0, len(items), size):
        yield first, items[first : first + size]
