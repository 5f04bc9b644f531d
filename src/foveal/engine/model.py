"""`foveal.load` and what it returns: a model to talk to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from foveal.core.errors import ConfigError, FovealError, InputError, neighbours
from foveal.core.media import MediaBudget
from foveal.core.packed import Packed, split
from foveal.engine.answer import Answer, Usage
from foveal.engine.desk import Desk
from foveal.engine.engine import Engine
from foveal.engine.options import EngineOptions
from foveal.engine.prepare import Gradual, compact, restored
from foveal.engine.quantize import quantized
from foveal.engine.request import Event, Sampling, answer_tokens, stop_ids
from foveal.engine.speech import Speech
from foveal.families.describe import folder_of
from foveal.families.load import Loaded, save_folder
from foveal.families.load import load as load_folder
from foveal.families.quantize import Quantization
from foveal.families.vlm import VLM, Output
from foveal.language.one_call import MOST
from foveal.nn.compact import compacts
from foveal.nn.native import dense
from foveal.nn.packed import packs
from foveal.nn.quantized_linear import QuantizedLinear
from foveal.processing.messages import ImagePart, VideoPart, parse_conversation
from foveal.processing.processor import PROCESS_OPTIONS, Processor, left_out


def load(
    name: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    budget: MediaBudget | None = None,
    adapter: str | Path | None = None,
    engine: EngineOptions | None = None,
    quantize: str | Quantization | None = None,
    prepare: bool | None = None,
) -> "Model":
    """Opens a model that answers questions. `foveal.load` opens the others too.

    Args:
        name: a hub name such as "Qwen/Qwen2-VL-2B-Instruct" or a checkpoint folder; None opens the small
            model that ships inside the package.
        dtype: "bfloat16", "float16" or "float32"; by default the type that the files hold.
        device: "cpu", "cuda", "mps"; by default an accelerator if there is one.
        revision: branch, tag or commit of a hub name.
        budget: bounds for every medium that the model is asked about.
        adapter: folder or hub name of a LoRA adapter (PEFT's files), computed beside the weights.
        engine: bounds of the engine that answers: memory, tokens of a step, guesses.
        quantize: "int8" or "int4" rounds the language model's linear layers while they are opened; `Quantization`
            names other parts and group sizes.
        prepare: give linear layers the form that computes fastest, while the model answers (`foveal.engine.prepare`).
            None: where no bit of an answer changes by it, which is in bfloat16 on a CPU with tiles (AMX). True: also
            on CPUs where answers change by roundings meanwhile. False: never.

    Raises:
        HubError: the name is no folder and cannot be fetched.
        ConfigError: the files describe something that Foveal does not compute.
        WeightsError: tensors are missing, surplus or damaged.
    """
    folder = folder_of(name, revision=revision)
    place = default_device() if device is None else device
    loaded = quantized(load_folder(folder, dtype=dtype, device=place, adapter=adapter), quantize)
    return Model(loaded, budget=budget or MediaBudget(), engine=engine or EngineOptions(), prepare=prepare)


def sources_of(messages: Any) -> tuple[Any, ...]:
    """The images and videos of one conversation as its user gave them."""
    parts = [part for message in parse_conversation(messages) for part in message.parts]
    return tuple(part.source for part in parts if isinstance(part, ImagePart | VideoPart))


def _known(options: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in options:
        if name not in names:
            raise InputError(f"unknown option {name!r}; {neighbours(name, names)}")


def _gradual(network: VLM, prepare: bool | None) -> Gradual | None:
    """What prepares a network while it answers; None where nothing is gained, or it is not wanted."""
    layers = list(network.modules())
    quantized = any(isinstance(layer, QuantizedLinear) for layer in layers)  # they have a form of their own
    if prepare is False or quantized:
        return None
    if dense.way() == dense.TILES:
        gains = any(map(compacts, network.language.modules()))  # while answers are written; prompts gain nothing
        return Gradual(network, compact, most_tokens=MOST) if gains else None
    return Gradual(network) if prepare and any(map(packs, layers)) else None


def default_device() -> str:
    """ "cuda" or "mps" if there is one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


DEFAULT_TOKENS = 512


class Model:
    """A vision-language model with its processing and its engine.

    All questions go through one engine, which remembers pictures and beginnings of conversations. Several threads may
    ask at once; their answers are computed together.

    Attributes:
        network: the torch module (`vision`, `adapter`, `language`), as it was loaded.
        prepared: the same module in the form that answers, whose layers may be no matrices; not to be changed.
        processor: messages to `Packed`, and ids back to text and boxes.
        family, config: what it is.
        sampling: the defaults of `chat`, `stream` and `generate`, from generation_config.json.
        budget: bounds for media.
        options: bounds of the engine.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        budget: MediaBudget,
        engine: EngineOptions = EngineOptions(),  # noqa: B008 (frozen)
        prepare: bool | None = False,
    ) -> None:
        if not isinstance(loaded.network, VLM) or not isinstance(loaded.processor, Processor):
            raise ConfigError(
                f"{loaded.folder} holds a {loaded.family.name} model, which answers no questions; "
                "foveal.load() gives it with what it can do."
            )
        self.prepared: VLM = loaded.network
        self._gradual = _gradual(loaded.network, prepare)
        self.processor: Processor = loaded.processor
        self.family, self.config = loaded.family, loaded.config
        self.generation, self.budget, self.options = loaded.generation, budget, engine
        self.sampling = Sampling.from_published(loaded.generation, stop=self.processor.processing.stop_texts)
        self.answer_tokens = answer_tokens(loaded.generation, DEFAULT_TOKENS)
        self.stop_ids = stop_ids(loaded.generation, self.processor.end_of_turn) | self.processor.stop_ids
        self._desk = Desk(Engine(self, engine))

    @property
    def network(self) -> VLM:
        """The torch module as it was loaded. Asking for it ends its preparation: it may be changed from then on."""
        if self._gradual is not None:
            with self._desk.between_steps():
                self._gradual.end()
                self._gradual = None
        return self.prepared

    def prepare(self) -> None:
        """Prepares at once what would be prepared before the next steps: all parts that have worked so far."""
        if self._gradual is not None:
            with self._desk.between_steps():
                self._gradual.finish()

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text of a user, tool or file can become."""
        return self.processor.special_ids

    def process(self, messages: Any = None, **options: Any) -> Packed:
        """Messages (one conversation or a list of them), or `prompt=` with `media=`, to a packed batch.

        Options are those of `Processor.process`: budget, generate, min_pixels, max_pixels, fps, nframes, ...
        """
        _known(options, (*PROCESS_OPTIONS, "prompt", "media", "budget"))
        return self.processor.process(messages, **{"budget": self.budget, **options})

    def forward(self, batch: Packed, *, keep: Iterable[str] = ()) -> Output:
        """Scores of the next token after every token; see `VLM.forward` for the names in `keep`."""
        return self.prepared(batch, keep=keep)

    def generate(self, batch: Packed, *, chunk: int | None = None, **options: Any) -> list[list[int]]:
        """Token ids of one answer for every sequence of the batch, the closing token included.

        Options are those of `Sampling`; `chunk` bounds the prompt tokens that are computed at a time.
        """
        packs = split(batch)
        answers: list[list[int]] = [[] for _ in packs]
        for news in self._desk.ask(packs, self._settle(packs, options, chunk), chunk=chunk):
            for number, event in news:
                if event.finish_reason == "error":
                    raise FovealError(event.error)
                answers[number].append(event.token)
        return answers

    def chat(self, messages: Any, *, chunk: int | None = None, **options: Any) -> Answer:
        """Answers one conversation. Options of `process` and of `Sampling` can be mixed."""
        stream = self.stream(messages, chunk=chunk, **options)
        for _ in stream:
            pass
        return stream.answer

    def chat_all(self, conversations: Sequence[Any], *, chunk: int | None = None, **options: Any) -> list[Answer]:
        """Answers several conversations at once; each answer equals the one it would get alone."""
        seen, said = self._split(options)
        packs = [self.process(messages, **seen) for messages in conversations]
        samplings = self._settle(packs, said, chunk)
        speeches = [self._speech(s, p) for s, p in zip(samplings, packs, strict=True)]
        for _ in self._hear(packs, speeches, chunk):
            pass
        return [self._answer(p, s, sources_of(c)) for p, s, c in zip(packs, speeches, conversations, strict=True)]

    def stream(self, messages: Any, *, chunk: int | None = None, **options: Any) -> "Stream":
        """Answers one conversation piece by piece. The pieces together are the answer's text."""
        seen, said = self._split(options)
        sources = sources_of(messages)
        packed = self.process(messages, **seen)
        (sampling,) = self._settle([packed], said, chunk)
        return Stream(self, packed, sampling, sources, chunk)

    def save(self, folder: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
        """Writes the model in the official layout, which other libraries open unchanged."""
        with self._desk.between_steps(), self._as_loaded():
            save_folder(
                Path(folder),
                family=self.family,
                config=self.config,
                network=self.prepared,
                processor=self.processor,
                generation=self.generation,
                shard_bytes=shard_bytes,
            )

    def _as_loaded(self) -> AbstractContextManager[None]:
        """The network is as it was loaded meanwhile."""
        return nullcontext() if self._gradual is None else restored(self.prepared, self._gradual.replace)

    def _split(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of processing, and options of sampling."""
        _known(options, (*PROCESS_OPTIONS, *(f.name for f in fields(Sampling))))
        seen = {k: v for k, v in options.items() if k in PROCESS_OPTIONS}
        return seen, {k: v for k, v in options.items() if k not in PROCESS_OPTIONS}

    def _speech(self, sampling: Sampling, packed: Packed) -> Speech:
        return Speech(self.processor, sampling, packed, self.stop_ids)

    def _settle(self, packs: Sequence[Packed], options: Mapping[str, Any], chunk: int | None) -> list[Sampling]:
        """The sampling of each answer, with its length and seed; refuses before anything is computed."""
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise InputError(f"chunk={chunk!r} needs to be a whole number of at least 1.")
        sampling = self.sampling.changed(options)
        return [self._desk.engine.settle(packed, sampling) for packed in packs]

    def _hear(
        self, packs: Sequence[Packed], speeches: Sequence[Speech], chunk: int | None
    ) -> Iterator[list[tuple[int, Event]]]:
        """Runs the answers to their ends; yields what is new after it was heard."""
        samplings = [speech.sampling for speech in speeches]
        over = [False] * len(speeches)
        for news in self._desk.ask(packs, samplings, chunk=chunk, ended=over.__getitem__):
            for number, event in news:
                if not over[number]:  # what follows a stop string in the same step is not said
                    speeches[number].hear(event)
                    over[number] = speeches[number].finish_reason is not None
            yield news

    def _answer(self, packed: Packed, speech: Speech, sources: tuple[Any, ...]) -> Answer:
        grounded = speech.grounded
        if grounded is None or speech.finish_reason is None:
            raise InputError("the stream has not ended; read it to its end before asking for the answer.")
        return Answer(
            text=grounded.text,
            boxes=grounded.boxes,
            points=grounded.points,
            parts=grounded.parts,
            raw=speech.raw,
            ids=tuple(speech.ids),
            finish_reason=speech.finish_reason,
            usage=Usage(
                prompt_tokens=len(packed.tokens),
                visual_tokens=sum(m.tokens for m in packed.media),
                answer_tokens=len(speech.ids),
            ),
            media=packed.media,
            sampling=speech.sampling,
            sources=sources,
            left_out=left_out(packed),
            budget=self.budget,
        )


class Stream:
    """An answer in the making: iterate over its pieces of text, then read `answer`."""

    def __init__(
        self, model: Model, packed: Packed, sampling: Sampling, sources: tuple[Any, ...], chunk: int | None
    ) -> None:
        self._model, self._packed, self._sources = model, packed, sources
        self._speech = model._speech(sampling, packed)
        self._pieces = self._run(chunk)

    def _run(self, chunk: int | None) -> Iterator[str]:
        for _ in self._model._hear([self._packed], [self._speech], chunk):
            piece = self._speech.visible()
            if piece:
                yield piece

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer; `InputError` while the stream has not ended."""
        return self._model._answer(self._packed, self._speech, self._sources)
