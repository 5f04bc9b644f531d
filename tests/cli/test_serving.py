"""Flags of `foveal serve` and `foveal run` become settings, and settings reach the engine."""

import pytest

from foveal.cli import run, serve
from foveal.cli.main import Parser
from foveal.cli.serving import options_of
from foveal.serve.options import ServeOptions
from foveal.serve.service import Service

GIVEN = {
    "--quantize": ("int8", "quantize", "int8"),
    "--cache-bytes": ("1048576", "cache_bytes", 2**20),
    "--vision-cache-bytes": ("0", "vision_cache_bytes", 0),
    "--no-enable-prefix-caching": (None, "prefix_cache", False),
    "--enable-prefix-caching": (None, "prefix_cache", True),
    "--speculate": ("3", "speculate", 3),
    "--request-timeout": ("5", "request_s", 5.0),
    "--decode-timeout": ("2", "decode_s", 2.0),
}


def parsed(verb, *words: str) -> ServeOptions:
    parser = Parser(allow_abbrev=False)
    verb.configure(parser)
    return options_of(parser.parse_args(words))


@pytest.mark.parametrize("verb", [serve, run])
@pytest.mark.parametrize("flag", GIVEN)
def test_flags_become_settings(verb, flag):
    needed = ("requests.jsonl", "--output", "answers.jsonl") if verb is run else ()
    word, name, value = GIVEN[flag]
    made = parsed(verb, *needed, flag, *([] if word is None else [word]))
    assert made == ServeOptions(**{name: value})


def test_settings_reach_the_engine():
    made = Service(ServeOptions(quantize="int4", vision_cache_bytes=7, prefix_cache=False, cache_bytes=9, speculate=2))
    told = made.backend.settings
    assert told["quantize"] == "int4"
    wanted = {"vision_cache_bytes": 7, "prefix_cache": False, "cache_bytes": 9, "speculate": 2}
    assert wanted.items() <= told["engine"].items()
