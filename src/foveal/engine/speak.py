"""The next token of one answer, as an event; what goes wrong ends this answer only."""

import logging
from collections.abc import Callable

import numpy as np
from torch import Tensor

from foveal.core.errors import FovealError
from foveal.core.shapes import Float
from foveal.engine.request import Event
from foveal.engine.sampling import Choice, not_finite, pick
from foveal.engine.task import Task

log = logging.getLogger(__name__)


def chosen(token: int | None) -> Choice:
    """The choice of a token that is simply the best one (`foveal.engine.sampling.best`)."""
    if token is None:
        raise not_finite()
    return Choice(token=token)


def sampled(task: Task, scores: Float[Tensor, "V"], banned: Tensor) -> Choice:
    """The choice from scores by the answer's own options, random numbers and constraint."""
    allowed = None if task.constraint is None else np.asarray(task.constraint.mask(), dtype=bool)
    return pick(scores.clone(), task.generation, banned, allowed)


def speak(task: Task, choose: Callable[[], Choice], stops: frozenset[int]) -> Event:
    """Lets an answer say its next token."""
    constraint, generation = task.constraint, task.generation
    try:
        choice = choose()
        task.say(choice.token, stops)
        if constraint is not None and generation.finish_reason != "stop":
            constraint.accept(choice.token)
            if constraint.done:
                generation.finish_reason = "stop"
    except Exception as error:  # a constraint is somebody else's code
        if not isinstance(error, FovealError):
            log.exception("request %s fails", task.id)
        return Event(id=task.id, index=task.index, token=-1, finish_reason="error", error=str(error))
    return Event(
        id=task.id,
        index=task.index,
        token=choice.token,
        logprob=choice.logprob,
        top=choice.top,
        finish_reason=generation.finish_reason,
        cached_tokens=task.cached_tokens,
    )
