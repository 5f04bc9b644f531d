"""From events of the engine to what clients read: messages, chunks, token scores, boxes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from foveal.core.packed import Medium, Packed
from foveal.engine.answer import box_json, point_json
from foveal.engine.request import Event, Sampling
from foveal.engine.speech import Speech
from foveal.processing.grounding import Grounded
from foveal.processing.processor import Processor, left_out
from foveal.processing.tokens import Tokenizer
from foveal.serve import tools

LEAST = -9999.0
"""What OpenAI writes for a probability of 0, as JSON has no infinity."""


class Choice:
    """One answer in the making.

    Args:
        raw: whether its text keeps the model's own tags and coordinates.
        functions: names that it may call.
    """

    def __init__(
        self,
        processor: Processor,
        sampling: Sampling,
        packed: Packed,
        stops: frozenset[int],
        *,
        raw: bool,
        functions: frozenset[str],
    ) -> None:
        self.speech = Speech(processor, sampling, packed, stops)
        self.cached_tokens = 0
        self.scores: list[dict[str, Any]] = []
        self.calls: list[tools.Call] = []
        self._tokenizer, self._packed = processor.tokenizer, packed
        self._raw, self._functions = raw or bool(functions), functions
        self._clean = ""
        self._sent = 0

    @property
    def ended(self) -> bool:
        return self.speech.finish_reason is not None

    @property
    def finish_reason(self) -> str | None:
        return "tool_calls" if self.calls else self.speech.finish_reason

    @property
    def tokens(self) -> int:
        return len(self.speech.ids)

    def hear(self, event: Event, *, scored: bool) -> str:
        """Takes one event; gives the text that is certain since the last one. Raises `FovealError` for its error."""
        self.speech.hear(event)
        self.cached_tokens = event.cached_tokens
        if scored:
            self.scores.append(score(self._tokenizer, event))
        self._clean += self.speech.visible()
        text = self.speech.raw if self._raw else self._clean
        if self._functions:
            if self.ended:
                text, self.calls = tools.split(text, self._functions)
            else:
                text = text[: tools.certain(text)]
        piece, self._sent = text[self._sent :], max(self._sent, len(text))
        return piece

    def message(self, text: str) -> dict[str, Any]:
        """The whole answer, whose pieces together are `text`, as an assistant's message."""
        made: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            made["content"] = text.strip() or None
            made["tool_calls"] = [call.to_json() for call in self.calls]
        return {**made, **self.regions()}

    def regions(self) -> dict[str, Any]:
        """Boxes and points in pixels of the original picture, where the answer has some."""
        found = self.speech.grounded
        return {} if found is None else _regions(found, self._packed)


def _regions(found: Grounded, packed: Packed) -> dict[str, Any]:
    first, media = left_out(packed), packed.media

    def written(items: Sequence[Any], write: Callable[[Any, Medium], dict[str, Any]]) -> list[dict[str, Any]]:
        return [write(item, media[item.image - first]) for item in items if 0 <= item.image - first < len(media)]

    boxes, points = written(found.boxes, box_json), written(found.points, point_json)
    return {**({"boxes": boxes} if boxes else {}), **({"points": points} if points else {})}


def score(tokenizer: Tokenizer, event: Event) -> dict[str, Any]:
    """One token with its score and the best ones beside it."""
    own = _scored(tokenizer, event.token, LEAST if event.logprob is None else event.logprob)
    return {**own, "top_logprobs": [_scored(tokenizer, i, p) for i, p in event.top]}


def _scored(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    letters = tokenizer.token_bytes(token)
    return {
        "token": letters.decode("utf-8", "replace"),
        "logprob": LEAST if math.isnan(logprob) else max(LEAST, logprob),
        "bytes": list(letters),
    }


def flat_scores(scores: Sequence[dict[str, Any]], begin: int) -> dict[str, Any]:
    """The same in the form of /v1/completions; `begin` is the length of the text before the first of them."""
    offsets = []
    for one in scores:
        offsets.append(begin)
        begin += len(one["token"])
    return {
        "tokens": [one["token"] for one in scores],
        "token_logprobs": [one["logprob"] for one in scores],
        "top_logprobs": [{t["token"]: t["logprob"] for t in one["top_logprobs"]} for one in scores],
        "text_offset": offsets,
    }


def media_json(packed: Packed, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the model saw of each medium, and the settings in force; `asked` are those of all media of the request."""
    first = left_out(packed)
    found = []
    for number, medium in enumerate(packed.media):
        settings = asked[first + number] if first + number < len(asked) else {}
        if medium.kind == "image":
            settings = {k: v for k, v in settings.items() if k in ("min_pixels", "max_pixels")}
        found.append(
            {
                "kind": medium.kind,
                "original_size": list(medium.view.original),
                "processed_size": list(medium.view.processed),
                "tokens": medium.tokens,
                **settings,
                **(
                    {"fps": round(medium.fps, 4), "frames": len(medium.times_s), "times_s": list(medium.times_s)}
                    if medium.kind == "video"
                    else {}
                ),
            }
        )
    return found
