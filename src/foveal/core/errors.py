"""Every error that a user of Foveal can cause derives from `FovealError`.

A message says what was found, what was expected and what to do. The command line prints it
alone, without a traceback, and leaves with exit status 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FovealError(Exception):
    """Root of all errors that Foveal raises on purpose."""


class InputError(FovealError, ValueError):
    """A message, prompt, option or argument is not what it has to be."""


class MediaError(InputError):
    """A picture or video is missing, damaged, empty or of a kind that is not read."""


class BudgetError(MediaError):
    """A medium, or the media of one request together, pass their `MediaBudget`."""


class ContextError(InputError):
    """A prompt with its answer does not fit into the model's context."""


class EngineFull(FovealError):
    """An engine has as many requests waiting as it may; try again later."""


class ConfigError(FovealError, ValueError):
    """A configuration file or configuration value is wrong or unknown."""


class WeightsError(FovealError, ValueError):
    """A checkpoint's tensors are missing, surplus, damaged, or of another shape or type."""


class HubError(FovealError, OSError):
    """A model cannot be found or fetched."""


class MissingExtraError(FovealError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


def neighbours(name: str, known: Iterable[str]) -> str:
    """A clause that names the known spellings nearest to `name`, for use at the end of an error."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(names) if names else "none are known"
