"""The `foveal` command: finds the verb, runs it, and turns errors into one line and exit status 2.

Every other module of this package that defines `HELP`, `configure` and `run` is a verb. Verbs import what is
heavy inside `run`, so that help and errors come at once.
"""

import argparse
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from foveal.core.errors import FovealError, InputError, neighbours

NOT_VERBS = frozenset(("main", "output", "serving"))


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `InputError`s that name similar options."""

    def error(self, message: str) -> Any:
        """Raises instead of printing a usage and leaving."""
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized arguments") and unknown[0].startswith("-"):
            known = [option for action in self._actions for option in action.option_strings]
            message = f"unknown option {unknown[0]}; {neighbours(unknown[0].split('=')[0], known)}"
        raise InputError(f"{message}. `{self.prog} --help` shows how it is used.")


def verbs() -> list[str]:
    """Names of all verbs: the modules of this package."""
    package = importlib.import_module("foveal.cli")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in NOT_VERBS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 done, 2 a user's error, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="foveal: %(message)s", level=logging.WARNING)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except FovealError as error:
        print(f"foveal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from foveal import __version__

        print(f"foveal {__version__}")
        return 0
    name = words[0]
    if name not in verbs():
        raise InputError(f"unknown command {name!r}; {neighbours(name, verbs())}")
    verb = importlib.import_module(f"foveal.cli.{name}")
    parser = Parser(
        prog=f"foveal {name}",
        description=verb.HELP,
        epilog=verb.EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.configure(parser)
    try:
        parsed = parser.parse_args(words[1:])
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    return int(verb.run(parsed))


def _overview() -> str:
    lines = ["usage: foveal COMMAND [OPTIONS]", "", "commands:"]
    for name in verbs():
        lines.append(f"  {name:<10}{importlib.import_module(f'foveal.cli.{name}').HELP}")
    return "\n".join([*lines, "", "`foveal COMMAND --help` explains one of them."])


if __name__ == "__main__":
    sys.exit(main())
