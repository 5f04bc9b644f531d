"""A processor of the published Qwen2-VL settings with the small vocabulary, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.processing.chat import ChatML
from foveal.processing.grounding import TaggedBoxes
from foveal.processing.native import NativeSize
from foveal.processing.patches import HALF
from foveal.processing.positions import MRope
from foveal.processing.processor import Processing, Processor
from foveal.processing.resize import PatchGrid
from foveal.processing.video import Frames
from tests.helpers.tiny_tokenizer import FOLDER

PROCESSING = Processing(
    vision=NativeSize(resize=PatchGrid(), normalize=HALF, video=Frames()),  # colours are replaced by the folder's
    chat=ChatML(),
    boxes=TaggedBoxes(),
    positions=MRope(),
)


def processor(folder: Path = FOLDER, *, context_tokens: int | None = None, **changes: Any) -> Processor:
    return Processor.from_folder(folder, replace(PROCESSING, **changes), context_tokens=context_tokens)
