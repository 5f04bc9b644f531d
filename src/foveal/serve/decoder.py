"""The child that opens media: everything that strangers send is decoded here, with bounded memory, and nowhere else.

It reads one request at a time, renders the conversation, decodes and cuts its pictures and videos, and answers with a
`Packed`. It never imports torch, opens no file but those of the checkpoint, and opens no address.
"""

import logging
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveal.core.errors import BudgetError, ContextError, FovealError, InputError, MediaError
from foveal.core.media import MediaBudget
from foveal.core.packed import Packed
from foveal.processing.pictures import PictureProcessor
from foveal.processing.processor import Processor
from foveal.serve.children import parent
from foveal.serve.wire import Channel, WireError, pack_message

log = logging.getLogger(__name__)

BLOB = "blob"
"""Key of a part's source that stands for bytes sent beside the message: `{"blob": 3}`."""

KINDS = {"budget": BudgetError, "media": MediaError, "context": ContextError, "input": InputError}


def main() -> None:
    """Serves requests until the server is gone."""
    channel = parent()
    settings, _ = channel.receive()
    limit(settings["memory_bytes"])
    try:
        processor = open_processor(Path(settings["folder"]), settings["context_tokens"])
    except FovealError as error:
        channel.send({"failed": "config", "text": str(error)})
        return
    budget = MediaBudget(**settings["budget"])
    channel.send({"ready": True})
    while True:
        try:
            message, blobs = channel.receive()
        except WireError:
            return
        answer(channel, processor, budget, message, blobs)


def limit(memory_bytes: int) -> None:
    """Bounds this process: address space, no files written, few files open, no core dump."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def open_processor(folder: Path, context_tokens: int | None) -> Processor | PictureProcessor:
    """The processing of a checkpoint, with a shorter context where one is asked for."""
    from foveal.families.describe import describe

    processor = describe(folder).processor
    if isinstance(processor, Processor) and context_tokens is not None:
        processor.context_tokens = context_tokens
    return processor


def answer(
    channel: Channel,
    processor: Processor | PictureProcessor,
    budget: MediaBudget,
    message: Mapping[str, Any],
    blobs: Sequence[np.ndarray],
) -> None:
    """Answers one request, by a pack or by the reason why there is none."""
    try:
        if isinstance(processor, PictureProcessor):
            pictures = processor.pictures([source(s, blobs) for s in message["pictures"]], budget=budget)
            channel.send({"pictures": len(pictures.media)}, [pictures.patches, pictures.grids])
            return
        packed = process(processor, budget, message, blobs)
        head, arrays = pack_message(packed)
        channel.send({"packed": head}, arrays)
    except FovealError as error:
        kind = next((name for name, cls in KINDS.items() if isinstance(error, cls)), "internal")
        channel.send({"failed": kind, "text": str(error)})
    except MemoryError:
        channel.send({"failed": "budget", "text": "the media of the request do not fit into this server's memory."})
    except Exception:
        # Whatever a decoder may raise: its text stays in the log, where only the server's owner reads it.
        log.exception("a medium could not be processed")
        channel.send({"failed": "media", "text": "a medium of the request cannot be decoded."})


def process(
    processor: Processor, budget: MediaBudget, message: Mapping[str, Any], blobs: Sequence[np.ndarray]
) -> Packed:
    """The conversation of a request as a pack; without patches if the request only counts."""
    packed = processor.process(
        fill(message["messages"], blobs), budget=budget, generate=message["generate"], **message["knobs"]
    )
    if message.get("count"):
        return replace(packed, patches=packed.patches[:0], extra={})
    return packed


def fill(messages: Sequence[Mapping[str, Any]], blobs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The messages with media in the place of references to blobs. No other name of a medium passes."""
    filled = []
    for message in messages:
        parts = []
        for part in message["content"]:
            kind = part["type"]
            parts.append({**part, kind: source(part[kind], blobs)} if kind in ("image", "video") else part)
        filled.append({"role": message["role"], "content": parts})
    return filled


def source(value: Any, blobs: Sequence[np.ndarray]) -> Any:
    """What a part names: bytes that came beside the message, or a data URL; a list of frames likewise."""
    if isinstance(value, list):
        return [source(v, blobs) for v in value]
    if isinstance(value, Mapping):
        return blobs[int(value[BLOB])].tobytes()
    if isinstance(value, str) and value[:5].lower() == "data:":
        return value
    raise InputError("a medium is neither bytes nor a data: URL.")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # decoders warn about what strangers send
    logging.basicConfig(format="foveal decoder: %(message)s", level=logging.WARNING, stream=sys.stderr)
    main()
