"""`foveal serve --engine vllm`: the same model behind the same limits, served by vLLM for many accelerators.

Flags were read from vLLM 0.32. What vLLM has no flag for is named, so that a proxy before it can see to it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foveal.core.errors import ConfigError
from foveal.engine.speculate import LONGEST, SHORTEST
from foveal.families.describe import describe, folder_of
from foveal.serve.options import ServeOptions

ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "qwen2_vl": (),
    "qwen2_5_vl": (),
    "qwen3_vl": (),
    # The published file names a class of the original code; vLLM goes by its own.
    "deepseek_vl2": ("--hf-overrides", '{"architectures": ["DeepseekVLV2ForCausalLM"]}'),
    "clip": ("--runner", "pooling"),
    "siglip": ("--runner", "pooling"),
}
"""Families that vLLM serves, with what it has to be told besides."""

UNLIKE: Mapping[str, str] = {
    "quantize": "vLLM opens weights that are rounded before; serve the folder that `foveal convert --quantize` writes",
    "device": "vLLM computes on the device that it was built for; leave it out",
    "threads": "vLLM takes it from its environment; leave it out",
    "vision_cache_bytes": "vLLM bounds what it keeps of media by other measures; leave it out",
}
"""Settings that vLLM has nothing like, and what to do instead."""

NOWHERE = "none.invalid"
"""A host that nobody can have (RFC 2606): without any allowed host, vLLM fetches from every one."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """How vLLM is started.

    Attributes:
        command: the program and its arguments; no key is among them.
        environment: what it needs besides; the key is here, as arguments are shown to everybody on a machine.
        lost: limits of this server that vLLM does not have.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    lost: tuple[str, ...]


def handover(options: ServeOptions) -> Handover:
    """The command for `options`.

    Raises:
        ConfigError: the checkpoint is no good, its family is not served by vLLM, or a setting has no like there.
    """
    folder = folder_of(options.model)
    found = describe(folder)
    name = found.family.name
    if name not in ARCHITECTURES:
        raise ConfigError(f"vLLM does not serve {name}; it serves {', '.join(ARCHITECTURES)}. Use `foveal serve`.")
    if len(options.api_keys) > 1:
        raise ConfigError("vLLM takes one key from its environment; pass one --api-key, or a proxy that knows several.")
    for setting, instead in UNLIKE.items():
        if getattr(options, setting) is not None:
            raise ConfigError(f"--{setting.replace('_', '-')} is given with --engine vllm: {instead}.")
    context = found.family.context(found.config)
    if options.max_model_len is not None and options.max_model_len > context:
        raise ConfigError(f"max_model_len is {options.max_model_len}; this model takes up to {context} tokens.")
    words = ["vllm", "serve", str(folder), "--host", options.host, "--port", str(options.port)]
    words += ["--served-model-name", options.served_model_name or folder.name]
    words += ["--max-num-seqs", str(options.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(options.max_num_batched_tokens)]
    if options.max_model_len is not None:
        words += ["--max-model-len", str(options.max_model_len)]
    if options.dtype is not None:
        words += ["--dtype", options.dtype]
    if options.cache_bytes is not None:
        words += ["--kv-cache-memory-bytes", str(options.cache_bytes)]
    if not options.prefix_cache:
        words += ["--no-enable-prefix-caching"]
    if options.speculate:
        guesses = {"method": "ngram", "prompt_lookup_min": SHORTEST, "prompt_lookup_max": LONGEST}
        words += ["--speculative-config", json.dumps({**guesses, "num_speculative_tokens": options.speculate})]
    words += ["--allowed-media-domains", *(options.allowed_media_domains or (NOWHERE,))]
    if options.allowed_local_media_path is not None:
        words += ["--allowed-local-media-path", str(Path(options.allowed_local_media_path).resolve())]
    words += ["--limit-mm-per-prompt", json.dumps(dict(options.limit_mm_per_prompt))]
    if options.max_pixels is not None and name.startswith("qwen"):
        words += ["--mm-processor-kwargs", json.dumps({"max_pixels": options.max_pixels})]
    if options.adapter is not None:
        words += ["--enable-lora", "--lora-modules", f"adapter={options.adapter}"]
    words += ARCHITECTURES[name]
    environment = {"VLLM_API_KEY": options.api_keys[0]} if options.api_keys else {}
    return Handover(command=tuple(words), environment=environment, lost=_lost(options))


def _lost(options: ServeOptions) -> tuple[str, ...]:
    budget = options.budget
    return (
        f"a queue of at most {options.max_waiting} (vLLM's is not bounded)",
        f"bodies of at most {options.max_body_bytes:,} bytes, sent within {options.body_s:g} s",
        f"media of at most {budget.file_bytes:,} bytes, {budget.image_px:,} pixels, {budget.frames} frames, "
        f"{budget.video_s:g} s, decoded in a process of its own within {options.decode_s:g} s",
        f"requests of at most {options.request_s:g} s",
        "keys on all routes (vLLM asks for one on /v1 only)" if options.api_keys else "the page at /",
    )


def run(plan: Handover) -> None:
    """Becomes vLLM: signals and the exit status are its own. `ConfigError` when it is not installed."""
    program = shutil.which(plan.command[0])
    if program is None:
        raise ConfigError("vLLM is not installed here: no program `vllm` on the path; run the printed command there.")
    os.execve(program, plan.command, {**os.environ, **plan.environment})
