"""Settings of a server. Names are vLLM's where the meaning is the same; the defaults are safe as they are."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveal.core.errors import ConfigError
from foveal.core.media import MediaBudget

MIB = 1024**2
BUDGET = MediaBudget(media=16, file_bytes=32 * MIB, image_px=7680 * 4320, frames=256, video_s=3600.0)
"""Of each medium by default: a picture of 8K, an hour of video."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What a server offers, and to whom.

    Attributes:
        model: hub name or folder; None is the small model inside.
        quantize: "int8" or "int4" rounds the language model's weights while they are opened.
        host, port: where it listens; port 0 takes a free one.
        api_keys: who may ask; empty lets everybody ask, which is allowed on loopback only.
        open_paths: paths that need no key in spite of `api_keys`, such as "/health" for a probe; "/" is the page with
            all its files.
        served_model_name: what clients call the model; None takes the folder's name.
        max_model_len: tokens of prompt and answer together; None is the model's context.
        max_num_seqs: answers in the making at once. max_waiting: requests beyond it that wait; one more gets 429.
        max_num_batched_tokens: tokens of a step of the engine.
        cache_bytes, vision_cache_bytes: memory for keys and values, and for visual tokens of media that were seen;
            None leaves it to the engine.
        prefix_cache: keep keys and values of finished answers for prompts that begin alike.
        allowed_media_domains, allowed_local_media_path: see `foveal.serve.media.Media`.
        limit_mm_per_prompt: most images and videos of a request.
        max_pixels: area of a processed picture or frame: the default, and the most that a request may ask for.
            None leaves both to the model.
        budget: bounds for each medium before it is decoded.
        max_body_bytes: bytes of a request's body. body_s: seconds in which it has to arrive.
        request_s: seconds for a whole request. decode_s: seconds for the media of a request. fetch_s: for one address.
        decoders: processes that decode. decoder_bytes: address space of each.
        shutdown_s: seconds that open requests get to finish when the server is stopped; then they end with an error.
    """

    model: str | None = None
    adapter: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    device: str | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    open_paths: tuple[str, ...] = ()
    served_model_name: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_waiting: int = 64
    max_num_batched_tokens: int = 2048
    cache_bytes: int | None = None
    vision_cache_bytes: int | None = None
    prefix_cache: bool = True
    speculate: int = 0
    allowed_media_domains: tuple[str, ...] = ()
    allowed_local_media_path: Path | None = None
    limit_mm_per_prompt: Mapping[str, int] = field(default_factory=lambda: {"image": 16, "video": 2})
    max_pixels: int | None = 1280 * 28 * 28
    budget: MediaBudget = BUDGET
    max_body_bytes: int = 64 * MIB
    body_s: float = 60.0
    request_s: float = 600.0
    decode_s: float = 30.0
    fetch_s: float = 10.0
    decoders: int = 2
    decoder_bytes: int = 3072 * MIB
    shutdown_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_body_bytes", "decoders", "decoder_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        for name in ("body_s", "request_s", "decode_s", "fetch_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected seconds above 0.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535.")
        for name in ("max_waiting", "shutdown_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}; expected 1 or more.")
        for key, value in self.limit_mm_per_prompt.items():
            if key not in ("image", "video") or type(value) is not int or value < 0:
                raise ConfigError(
                    f"limit_mm_per_prompt has {key!r}: {value!r}; expected whole numbers for 'image' and 'video'."
                )
        for key_text in self.api_keys:
            if not (key_text.isascii() and key_text.isprintable() and key_text.strip() == key_text and key_text):
                raise ConfigError("an API key is empty, or has blanks around it or letters that no header can carry.")
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"listening on {self.host} without a key would let anybody use this machine; set --api-key, "
                "or listen on 127.0.0.1."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
