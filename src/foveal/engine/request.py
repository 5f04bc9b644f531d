"""What is asked of an engine (`Sampling`, `Constraint`), what it says (`Event`), and how far an answer is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from foveal.core.config import from_mapping
from foveal.core.errors import ConfigError, InputError, neighbours

FinishReason = Literal["stop", "length"]

MOST_LOGPROBS = 100


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choice of the next token. The defaults are greedy; a checkpoint's generation_config.json may say otherwise.

    Attributes:
        max_tokens: longest answer; None means what generation_config.json says, or 512, or the end of the context.
        temperature: divides the scores; 0 takes the best token.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the smallest set of best tokens whose probability reaches this (Holtzman et al. 2020).
        min_p: keep tokens at least this probable relative to the best one.
        repetition_penalty: divides positive and multiplies negative scores of tokens that occur in prompt or
            answer (Keskar et al. 2019, section 4.1); 1 is off.
        presence_penalty: subtracted from the score of every token that the answer already holds.
        frequency_penalty: subtracted from the score of a token as often as the answer holds it.
        seed: makes a sampled answer repeatable, whatever else runs beside it; None draws one.
        stop: the answer ends before any of these strings.
        ignore_eos: go on past end-of-text tokens, up to `max_tokens`.
        logprobs: report the log-probability of every chosen token and of so many best ones, by the model's own
            scores, before any of the above changes them; None is off.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        rules = {
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "a whole number of at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "0 or more, and finite"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0, and finite"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "from -2 to 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "from -2 to 2"),
            "logprobs": (
                self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
                f"a whole number from 0 to {MOST_LOGPROBS}",
            ),
            "stop": (
                all(isinstance(s, str) and s for s in self.stop),
                "a list of strings that are not empty",
            ),
        }
        for name, (good, expected) in rules.items():
            if not good:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected {expected}.")

    def changed(self, options: Mapping[str, Any]) -> "Sampling":
        """A copy with some options changed; an unknown name or wrong type is an `InputError`."""
        known = {f.name for f in fields(self)}
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r}; {neighbours(name, known)}")
        values = vars(self) | {k: v for k, v in options.items() if v is not None}
        if isinstance(values["stop"], str):
            values["stop"] = (values["stop"],)
        try:
            return from_mapping(Sampling, values, "sampling")
        except ConfigError as error:
            raise InputError(str(error)) from None

    @classmethod
    def from_published(cls, published: Mapping[str, Any], *, stop: tuple[str, ...] = ()) -> "Sampling":
        """The defaults that generation_config.json states. `do_sample: false` means greedy; `stop` is the family's."""
        found: dict[str, Any] = {}
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            if published.get(name) is not None:
                found[name] = published[name]
        if not published.get("do_sample", False):
            found = {k: v for k, v in found.items() if k == "repetition_penalty"}
        elif "temperature" not in found:
            found["temperature"] = 1.0
        try:
            return from_mapping(cls, {**found, "stop": stop}, "sampling")
        except (ConfigError, InputError) as error:
            raise ConfigError(f"generation_config.json: {error}") from None


def stop_ids(published: Mapping[str, Any], fallback: int) -> frozenset[int]:
    """Ids that end an answer, from generation_config.json, or the tokenizer's end-of-turn id."""
    stated = published.get("eos_token_id")
    if stated is None:
        return frozenset((fallback,))
    ids = stated if isinstance(stated, list) else [stated]
    if not all(type(i) is int for i in ids):
        raise ConfigError(f"generation_config.json: eos_token_id is {stated!r}; expected an id or a list of ids.")
    return frozenset(ids)


def answer_tokens(published: Mapping[str, Any], fallback: int) -> int:
    """How long an answer may get when nobody says: `max_new_tokens` of generation_config.json, or `fallback`."""
    stated = published.get("max_new_tokens")
    if stated is None:
        return fallback
    if isinstance(stated, bool) or not isinstance(stated, int) or stated < 1:
        raise ConfigError(f"generation_config.json: max_new_tokens is {stated!r}; expected a whole number above 0.")
    return stated


@runtime_checkable
class Constraint(Protocol):
    """Which tokens may come next, for answers in a given form (a grammar, a JSON schema)."""

    @property
    def done(self) -> bool:
        """Whether the answer is complete; it ends then, with or without an end-of-text token."""
        ...

    def mask(self) -> np.ndarray:
        """Allowed ids as booleans [V]; ids past its end are not allowed, and at least one has to be."""
        ...

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        ...


@dataclass(frozen=True, kw_only=True)
class Event:
    """One token of one answer, or its end by an error.

    Attributes:
        id: of the request.
        index: which of its n answers.
        token: the new token's id; -1 when an error ends the answer.
        logprob: of `token`, when `Sampling.logprobs` asks for it.
        top: (id, log-probability) of the best tokens, the best first, as many as `Sampling.logprobs` says.
        finish_reason: why the answer ends with this event; None while it goes on.
        error: what went wrong, when `finish_reason` is "error".
        cached_tokens: tokens of the prompt that were not computed again.
    """

    id: str
    index: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: Literal["stop", "length", "error"] | None = None
    error: str = ""
    cached_tokens: int = 0


@dataclass
class Generation:
    """One answer in the making. Its random numbers depend on its own seed only."""

    sampling: Sampling
    prompt: list[int]
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        import torch  # late, so that options can be read and checked without it

        self.random = torch.Generator()
        if self.sampling.seed is None:
            self.seed = self.random.seed()
        else:
            self.seed = self.sampling.seed
            self.random.manual_seed(self.seed)

    def accept(self, token: int, stops: frozenset[int]) -> None:
        """Takes the next token; an end-of-text token is kept as the last id."""
        self.ids.append(token)
        if token in stops and not self.sampling.ignore_eos:
            self.finish_reason = "stop"
        elif len(self.ids) >= self.max_tokens:
            self.finish_reason = "length"
