"""What all endpoints share: the model's processing, the decoders, the engine, places, and figures."""

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foveal.core.errors import ConfigError, ContextError, InputError
from foveal.core.packed import Packed
from foveal.engine.request import Sampling, answer_tokens, stop_ids
from foveal.families.describe import describe, folder_of
from foveal.processing.intake import Knobs
from foveal.processing.packing import pack
from foveal.processing.processor import Processor
from foveal.processing.segments import TextSegment
from foveal.serve.admission import Keys, Places
from foveal.serve.backend import Backend
from foveal.serve.conversation import Conversation, most_pixels
from foveal.serve.grammar import Vocabulary
from foveal.serve.media import Media
from foveal.serve.metrics import Metrics
from foveal.serve.options import ServeOptions
from foveal.serve.pool import Decoders
from foveal.serve.wire import read_pack

log = logging.getLogger(__name__)

DEFAULT_TOKENS = 512
SHORT = 16_384  # characters of a text that is made into tokens at once; a longer one goes to a decoder
LAG_S = 0.1


class Service:
    """Everything behind the API. `start` brings it up, `close` ends all children."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        folder = folder_of(options.model)
        self.described = describe(folder)
        self.name = options.served_model_name or (options.model and Path(options.model).name) or "foveal-nano"
        self.created = int(time.time())
        self.processor = self.described.processor
        self.keys, self.metrics = Keys(options.api_keys), Metrics()
        self.places = Places(options.max_num_seqs, options.max_waiting)
        self.media = Media(
            hosts=frozenset(options.allowed_media_domains),
            folder=options.allowed_local_media_path,
            file_bytes=options.budget.file_bytes,
            fetch_s=options.fetch_s,
        )
        self.context_tokens = self._context()
        if self.talks:
            generation = self.described.generation
            self.sampling = Sampling.from_published(generation, stop=self.talker.processing.stop_texts)
            self.answer_tokens = answer_tokens(generation, DEFAULT_TOKENS)
            self.stop_ids = stop_ids(generation, self.talker.end_of_turn) | self.talker.stop_ids
            self.vocabulary = Vocabulary(self.talker.tokenizer, sorted(self.stop_ids))
        self.decoders = Decoders(
            {
                "folder": str(folder),
                "context_tokens": self.context_tokens,
                "memory_bytes": options.decoder_bytes,
                "budget": asdict(options.budget),
            },
            count=options.decoders,
            limit_s=options.decode_s,
        )
        self.backend = Backend(
            {
                "folder": str(folder),
                "dtype": options.dtype,
                "quantize": options.quantize,
                "device": options.device,
                "adapter": options.adapter,
                "threads": options.threads,
                "engine": {
                    "max_requests": options.max_num_seqs,
                    "step_tokens": options.max_num_batched_tokens,
                    "cache_bytes": options.cache_bytes,
                    "vision_cache_bytes": options.vision_cache_bytes,
                    "prefix_cache": options.prefix_cache,
                    "speculate": options.speculate,
                },
            },
        )
        self.over = False
        self.working: set[asyncio.Future[None]] = set()
        """The work of open requests; `end_work` cancels it."""
        self._lag: asyncio.Task[None] | None = None

    @property
    def talks(self) -> bool:
        """Whether the model answers questions; otherwise it compares pictures and texts."""
        return isinstance(self.processor, Processor)

    @property
    def talker(self) -> Processor:
        """The processing of conversations. `InputError` for a model that has none."""
        if not isinstance(self.processor, Processor):
            raise InputError(f"{self.name} answers no questions; ask /v1/embeddings for vectors of pictures and texts.")
        return self.processor

    def _context(self) -> int | None:
        """Tokens of prompt and answer together."""
        if not self.talks:
            return None
        own = self.described.family.context(self.described.config)
        wanted = self.options.max_model_len
        if wanted is None:
            return own
        if not 1 <= wanted <= own:
            raise ConfigError(f"max_model_len is {wanted}; this model takes from 1 to {own} tokens.")
        self.talker.context_tokens = wanted
        return wanted

    async def start(self) -> None:
        """Starts decoders and engine together, and waits for both."""
        starts = [asyncio.create_task(self.decoders.start()), asyncio.create_task(self.backend.start())]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await self.close()
            raise
        self._lag = asyncio.create_task(self._watch())

    def end_work(self) -> None:
        """Ends what open requests do, because the server ends. They are told so, and later ones too."""
        self.over = True
        for work in self.working:
            work.cancel()

    async def close(self) -> None:
        """Ends all children."""
        if self._lag is not None:
            self._lag.cancel()
        await self.backend.close()
        await asyncio.to_thread(self.decoders.close)

    async def _watch(self) -> None:
        """Measures how late the event loop runs."""
        while True:
            due = time.monotonic() + LAG_S
            await asyncio.sleep(LAG_S)
            self.metrics.loop.observe(max(0.0, time.monotonic() - due))

    async def packed(self, talk: Conversation, *, generate: bool = True, count: bool = False) -> Packed:
        """A conversation as a pack. What holds media goes to a decoder, and so does a long text."""
        blobs = await talk.fetched(self.media)
        message = {"messages": talk.messages, "generate": generate, "knobs": talk.knobs, "count": count}
        size = sum(len(p.get("text", "")) for m in talk.messages for p in m["content"])
        if not talk.places and size <= SHORT:
            return self.talker.process(talk.messages, generate=generate, **talk.knobs)
        reply, arrays = await self.decoders.process(message, blobs)
        packed = read_pack(reply["packed"], arrays)
        for medium in packed.media:
            self.metrics.media.labels(medium.kind).inc()
        return packed

    def plain(self, prompt: str | Sequence[int]) -> Packed:
        """A text without chat format, or its tokens, as a pack. Nothing in it is special.

        Raises:
            InputError: an id is special or none of the vocabulary; ContextError: it is too long.
        """
        p, tokenizer = self.talker.processing, self.talker.tokenizer
        if isinstance(prompt, str):
            return pack([TextSegment(text=prompt)], [], tokenizer, p.vision, p.positions, self.context_tokens)
        wrong = next((i for i in prompt if i >= tokenizer.vocab_size or i in tokenizer.special_ids), None)
        if wrong is not None:
            raise InputError(f"token {wrong} is special or none of this model's; prompts hold tokens of text.")
        if self.context_tokens is not None and len(prompt) > self.context_tokens:
            raise ContextError(f"the prompt has {len(prompt)} tokens; this server takes {self.context_tokens}.")
        placed, delta = p.positions.place(len(prompt), [])
        empty = pack([TextSegment(text="x")], [], tokenizer, p.vision, p.positions, None)
        return Packed(
            tokens=np.array(prompt, np.int64),
            positions=placed,
            starts=np.array([0, len(prompt)], np.int64),
            deltas=np.array([delta], np.int64),
            patches=empty.patches,
            grids=empty.grids,
            extra=empty.extra,
        )

    def settled(self, sampling: Sampling, packed: Packed) -> Sampling:
        """With the length and seed that the answer will have. `ContextError` when prompt and answer do not fit."""
        length, most = len(packed.tokens), self.context_tokens or len(packed.tokens) + self.answer_tokens
        room, wanted = most - length, sampling.max_tokens
        if room < 1 or (wanted or 0) > room:
            raise ContextError(
                f"a prompt of {length} tokens and an answer of {wanted or 1} pass the context of {most}; shorten the "
                "prompt, lower max_pixels or frames, or lower max_tokens."
            )
        seed = uuid.uuid4().int % 2**53 if sampling.seed is None else sampling.seed
        return sampling.changed({"max_tokens": wanted or min(self.answer_tokens, room), "seed": seed})

    async def vectors_of_text(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors [N, E] of captions, and how many tokens they have together."""
        if isinstance(self.processor, Processor):
            raise InputError(f"{self.name} gives no vectors; ask /v1/chat/completions.")
        made = await asyncio.to_thread(self.processor.texts, list(texts))
        return await self._vectors("text", [made.tokens, made.starts]), len(made.tokens)

    async def vectors_of_pictures(self, urls: Sequence[str]) -> np.ndarray:
        """Vectors [N, E] of pictures."""
        if isinstance(self.processor, Processor):
            raise InputError(f"{self.name} gives no vectors; ask /v1/chat/completions.")
        parts = [{"type": "image", "image": url} for url in urls]
        talk = Conversation(messages=[], knobs={}, asked=[], places=[(part, "image", None) for part in parts])
        blobs = await talk.fetched(self.media)
        _, arrays = await self.decoders.process({"pictures": [part["image"] for part in parts]}, blobs)
        self.metrics.media.labels("image").inc(len(urls))
        return await self._vectors("pictures", arrays)

    async def _vectors(self, what: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
        id = uuid.uuid4().hex
        call = self.backend.embed(id, what, arrays)
        try:
            return await call.vectors()
        finally:
            self.backend.end(id, abort=False)

    def facts(self) -> dict[str, Any]:
        """What clients may want to know about the model."""
        options, processor = self.options, self.processor
        facts: dict[str, Any] = {
            "family": self.described.family.name,
            "context_tokens": self.context_tokens,
            "limit_mm_per_prompt": dict(options.limit_mm_per_prompt),
            "budget": asdict(options.budget),
            "remote_media": sorted(options.allowed_media_domains),
        }
        if isinstance(processor, Processor):
            own_px = most_pixels(processor)
            facts["max_pixels"] = min(own_px, options.max_pixels or own_px) if own_px is not None else None
            facts["videos"] = processor.processing.chat.pads[1] is not None
            facts["boxes"] = bool(getattr(processor.processing.boxes, "space", None))
            if own_px is not None:
                # What the smallest picture is enlarged to.
                least = processor.processing.vision.measure_image(1, 1, knobs=Knobs(), count=1)
                facts["min_pixels"] = least.view.processed[0] * least.view.processed[1]
        return facts

    def figures(self) -> dict[str, Any]:
        """Figures of this moment."""
        stats: Mapping[str, Any] = self.backend.stats
        return {
            "ready": int(self.backend.state == "ready" and not self.places.draining),
            "requests_open": self.places.taken,
            "requests_refused_total": self.places.refused,
            "engine_requests_open": self.backend.open,
            "engine_restarts_total": self.backend.restarts,
            "decoder_restarts_total": self.decoders.restarts,
            "decoder_seconds_total": self.decoders.seconds,
            **{f"engine_{name}": value for name, value in stats.items()},
        }
