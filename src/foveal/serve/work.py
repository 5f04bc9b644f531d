"""What endpoints share: reading a request, running its answers at the engine, and telling what was done."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from foveal.core.packed import Packed
from foveal.engine.request import Event, Sampling
from foveal.serve.admission import Denied, Place
from foveal.serve.answers import Choice, media_json
from foveal.serve.conversation import Conversation
from foveal.serve.schema import IGNORED, ChatRequest, Said
from foveal.serve.service import Service

M = TypeVar("M", bound=BaseModel)
Json = dict[str, Any]

_FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: its body, its place, and when it came."""

    body: bytes
    place: Place
    arrived: float

    def read(self, model: type[M]) -> M:
        """The body as `model`. Raises `Denied` that says where it is wrong."""
        try:
            return model.model_validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"]) or None
            raise Denied(400, "invalid_request", f"{where or 'the body'}: {first['msg']}.", param=where) from None


@dataclass(kw_only=True)
class Work:
    """A prompt that is ready for the engine, and the answers that it gets."""

    packed: Packed
    sampling: Sampling
    grammar: str | None
    choices: list[Choice]

    async def run(self, service: Service, asked: Asked) -> AsyncGenerator[tuple[int, str, Event], None]:
        """Every event with the text that it made certain. The engine stops when this is closed."""
        id, running, first = uuid.uuid4().hex, len(self.choices), True
        call = service.backend.ask(id, self.packed, vars(self.sampling), n=len(self.choices), grammar=self.grammar)
        service.metrics.prompt.inc(len(self.packed.tokens))
        try:
            while not all(choice.ended for choice in self.choices):
                event = await call.next()
                if first:
                    service.metrics.first.observe(time.monotonic() - asked.arrived)
                    service.metrics.cached.inc(event.cached_tokens)
                    first = False
                running -= event.finish_reason is not None
                choice = self.choices[event.index]
                if not choice.ended:  # what comes after a stop string is not said
                    yield event.index, choice.hear(event, scored=self.sampling.logprobs is not None), event
        finally:
            service.metrics.answer.inc(sum(choice.tokens for choice in self.choices))
            service.backend.end(id, abort=running > 0)

    async def texts(self, service: Service, asked: Asked) -> list[str]:
        """The whole texts of all answers."""
        pieces: list[list[str]] = [[] for _ in self.choices]
        async with aclosing(self.run(service, asked)) as said:
            async for index, piece, _ in said:
                pieces[index].append(piece)
        return ["".join(words) for words in pieces]


def usage(works: Sequence[Work]) -> Json:
    """Tokens of all prompts and answers."""
    prompt = sum(len(w.packed.tokens) for w in works)
    said = sum(c.tokens for w in works for c in w.choices)
    cached = sum(max(c.cached_tokens for c in w.choices) for w in works)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
        "visual_tokens": sum(m.tokens for w in works for m in w.packed.media),
    }


def ignored(asked: BaseModel) -> list[str]:
    """Fields of the request that change nothing here."""
    return sorted(name for name in IGNORED if getattr(asked, name, None) is not None)


def check_model(service: Service, name: str | None) -> None:
    """Raises `Denied` for another model than the one served."""
    if name is not None and name != service.name:
        raise Denied(404, "model_not_found", f"the model is unknown; this server has {service.name!r}.", param="model")


def sampling_of(service: Service, asked: Said, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """The model's own settings with those of the request."""
    stop = (asked.stop,) if isinstance(asked.stop, str) else asked.stop
    changes: dict[str, Any] = {
        **{name: float(value) for name in _FLOATS if (value := getattr(asked, name)) is not None},
        "top_k": asked.top_k,
        "max_tokens": max_tokens,
        "seed": asked.seed,
        "ignore_eos": asked.ignore_eos,
        "stop": None if not stop else (*service.sampling.stop, *stop),
        "logprobs": logprobs,
    }
    return service.sampling.changed({name: value for name, value in changes.items() if value is not None})


def report(request: Said, sampling: Sampling, packed: Packed, talk: Conversation | None) -> Json:
    """What was done: the settings in force, what was seen of each medium, and fields that changed nothing."""
    unread = ignored(request)
    if isinstance(request, ChatRequest):
        unread += [
            f"messages.{i}.{name}"
            for i, message in enumerate(request.messages)
            for name in ("boxes", "points")
            if getattr(message, name, None)
        ]
    return {
        "media": media_json(packed, talk.asked if talk is not None else ()),
        "sampling": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(sampling).items()},
        "ignored": unread,
    }


async def check_form(service: Service, grammar: str | None) -> None:
    if grammar is not None:
        await asyncio.to_thread(service.vocabulary.check, grammar)
