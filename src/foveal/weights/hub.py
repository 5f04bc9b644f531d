"""From what a user calls a model to a folder: a folder here, the local hub cache, or the hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from foveal.core.errors import HubError

PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.tiktoken", "spiece.model")
"""What is fetched: configuration, weights, templates and vocabularies; no pickles and no code."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")


def locate(
    name: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True, also: Sequence[str] = ()
) -> Path:
    """The folder of the model called `name`: a folder of this machine, or `owner/name` on the hub.

    Args:
        revision: branch, tag or commit of a hub model; the hub's default when None.
        weights: whether the weights are fetched too; without them a few small files are enough.
        also: patterns of further files to fetch, for who converts them.

    Hub models are kept in huggingface_hub's cache; with HF_HUB_OFFLINE=1 only the cache is used. Raises
    `HubError` that says where it looked and what to do.
    """
    if not isinstance(name, str | os.PathLike):
        raise HubError(f"the model is {name!r}; pass a folder, or owner/name such as Qwen/Qwen2-VL-2B-Instruct.")
    path = Path(name).expanduser()
    if name != "" and path.is_dir():
        if revision is not None:
            raise HubError(f"{path} is a folder and has no revision {revision!r}; drop the revision.")
        return path
    if path.is_file():
        raise HubError(f"{path} is a file; pass the checkpoint's folder (`foveal convert` makes one of single files).")
    text = os.fspath(name)
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(text) or text.startswith((".", "~")):
        raise HubError(
            f"{text!r} is no folder here and no name on the hub; pass an existing folder, "
            "or owner/name such as Qwen/Qwen2-VL-2B-Instruct."
        )
    return _from_hub(text, revision, [*(p for p in PATTERNS if weights or p != "*.safetensors"), *also])


def _from_hub(name: str, revision: str | None, patterns: list[str]) -> Path:
    # Imported late: it takes a while, and most models are folders.
    import huggingface_hub
    from huggingface_hub import constants, errors

    what = name if revision is None else f"{name} at revision {revision!r}"
    try:
        return Path(huggingface_hub.snapshot_download(repo_id=name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        problem = "the hub gives it out only after its terms were accepted: accept them on its page, then log in"
    except errors.RevisionNotFoundError:
        problem = "the model exists on the hub, this revision does not: check the revision"
    except errors.RepositoryNotFoundError:
        problem = "the hub has no such model, or it is private: check the spelling, or log in"
    except Exception as error:
        # All of them: which transport errors leak out differs between the library's releases. Its own
        # messages are long and speak of its switches; the cause says what went wrong.
        if constants.is_offline_mode():
            problem = (
                "it is not in the hub cache, and HF_HUB_OFFLINE forbids fetching it: "
                "unset HF_HUB_OFFLINE, or pass a folder"
            )
        else:
            cause = error.__cause__ or error
            reason = (str(cause) or type(cause).__name__).splitlines()[0]
            problem = (
                f"it is not in the hub cache and could not be fetched ({reason}): "
                "check the connection, or pass a folder"
            )
    raise HubError(f"{what} is no folder here; {problem}.")
