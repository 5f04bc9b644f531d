"""The Qwen2 decoder in published configurations, as Qwen2-VL and Qwen2.5-VL state it."""

from typing import Any

from foveal.core.errors import ConfigError
from foveal.families.published import Reader
from foveal.language.config import DecoderConfig


def read_decoder(top: Reader) -> DecoderConfig:
    """Sizes from config.json in the released flat form or in the nested form that transformers 5 writes."""
    tied = top.flag("tie_word_embeddings", False)
    nested = top.section("text_config")
    text = nested or top
    if nested:
        tied = nested.flag("tie_word_embeddings", tied)
    text.require("hidden_act", "silu")
    text.require("use_sliding_window", False)
    rope = text.section("rope_scaling") or text.section("rope_parameters") or Reader({}, "rope")
    for key in ("type", "rope_type"):
        rope.require(key, "mrope", "default")
    width, heads = text.integer("hidden_size"), text.integer("num_attention_heads")
    if width % heads:
        raise ConfigError(f"config.json: hidden_size {width} is not divisible by num_attention_heads {heads}.")
    text.require("head_dim", width // heads, None)
    language = DecoderConfig(
        width=width,
        depth=text.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=text.integer("num_key_value_heads"),
        head_dim=width // heads,
        mlp_width=text.integer("intermediate_size"),
        vocab=text.integer("vocab_size"),
        eps=text.number("rms_norm_eps", 1e-5),
        theta=rope.number("rope_theta", text.number("rope_theta", 1_000_000.0)),
        section=rope.integers("mrope_section", (16, 24, 24)),
        tied=tied,
        context=text.integer("max_position_embeddings"),
    )
    rope.finish()
    if nested:
        nested.finish()
    return language


def flat_decoder(language: DecoderConfig) -> dict[str, Any]:
    """The decoder's part of config.json in the flat form of the releases."""
    return {
        "hidden_act": "silu",
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "max_position_embeddings": language.context,
        "max_window_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.depth,
        "num_key_value_heads": language.kv_heads,
        "rms_norm_eps": language.eps,
        "rope_theta": language.theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(language.section)},
        "sliding_window": language.context,
        "use_sliding_window": False,
        "tie_word_embeddings": language.tied,
        "vocab_size": language.vocab,
    }


def check_heads(language: DecoderConfig) -> None:
    """The flat form does not state the head size; raises `ConfigError` where it cannot be derived."""
    if language.heads * language.head_dim != language.width:
        raise ConfigError(f"{language.heads} heads of {language.head_dim} do not make the width {language.width}.")
