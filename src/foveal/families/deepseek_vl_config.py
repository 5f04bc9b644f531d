"""DeepSeek-VL's configuration, and config.json in the layout of transformers."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from foveal.core.errors import ConfigError
from foveal.families.published import Reader
from foveal.language.config import DecoderConfig
from foveal.vision.config import PlainConfig
from foveal.vision.hybrid_config import SamConfig, TowersConfig, probe_pool

Layout: TypeAlias = Literal["original", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a DeepSeek-VL model, and the layout of its files."""

    vision: TowersConfig
    language: DecoderConfig
    layout: Layout = "original"

    def __post_init__(self) -> None:
        if self.language.qkv_bias:
            raise ConfigError("DeepSeek-VL's decoder has no biases; set qkv_bias to False.")
        if self.language.width % 2:
            raise ConfigError(f"the width {self.language.width} cannot be divided between two towers; make it even.")


def from_transformers(top: Reader) -> Config:
    """Reads config.json of model_type `deepseek_vl` or `deepseek_vl_hybrid`; `ConfigError` for what is not computed."""
    hybrid = top.values.get("model_type") == "deepseek_vl_hybrid"
    language = read_decoder(top.need("text_config"), tied=top.get("tie_word_embeddings", None))
    seen = top.need("vision_config")
    activation = seen.word("hidden_act", "gelu_pytorch_tanh")
    width, patch = seen.integer("hidden_size", 768), seen.integer("patch_size", 16)
    low = PlainConfig(
        width=width,
        depth=seen.integer("num_hidden_layers", 12),
        heads=seen.integer("num_attention_heads", 12),
        mlp_width=seen.integer("intermediate_size", 3072),
        patch=patch,
        side=whole_side(seen, seen.integer("image_size", 224), patch),
        eps=seen.number("layer_norm_eps", 1e-6),
        activation="gelu_tanh" if activation == "gelu_pytorch_tanh" else activation,
    )
    seen.require("num_channels", 3)
    unused = probe_pool(width, low.mlp_width) if seen.get("vision_use_head", True) else {}
    seen.finish()
    high = None
    if hybrid:
        large = top.need("high_res_vision_config")
        high = _transformers_sam(large, low.side)
        large.finish()
    top.finish()
    vision = TowersConfig(low=low, high=high, unused=tuple(unused.items()))
    return Config(vision=vision, language=language, layout="transformers")


def _transformers_sam(part: Reader, low_side: int) -> SamConfig:
    for key in ("qkv_bias", "use_abs_pos", "use_rel_pos"):
        part.require(key, True)
    part.require("num_channels", 3)
    for key in ("num_pos_feats", "scale", "intermediate_size"):
        part.get(key, None)  # of SAM's other parts; the converted releases state the last without effect
    width, patch, neck = (
        part.integer("hidden_size", 768),
        part.integer("patch_size", 16),
        part.integer("output_channels", 256),
    )
    part.require("hidden_act", "gelu")
    ratio = part.number("mlp_ratio", 4.0)
    return SamConfig(
        width=width,
        depth=part.integer("num_hidden_layers", 12),
        heads=part.integer("num_attention_heads", 12),
        mlp_width=int(width * ratio) if part.get("mlp_dim", None) is None else part.integer("mlp_dim"),
        patch=patch,
        side=whole_side(part, part.integer("image_size", 1024), patch),
        eps=part.number("layer_norm_eps", 1e-6),
        norm_after=False,
        window=part.integer("window_size", 14),
        full=part.integers("global_attn_indexes", (2, 5, 8, 11)),
        neck=neck,
        down=(2 * neck, 4 * neck),
        resized=4 * low_side,
    )


def to_transformers(config: Config) -> dict[str, Any]:
    """config.json that transformers opens; `ConfigError` for what it cannot state."""
    vision, language, low = config.vision, config.language, config.vision.low
    if vision.low_colours or vision.high_colours:
        raise ConfigError(
            "this model's towers normalise their pixels themselves, as in DeepSeek's own layout; for the layout of "
            "transformers its processor has to do it: set low_colours and high_colours to None."
        )
    name = "DeepseekVL" if vision.high is None else "DeepseekVLHybrid"
    published = {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": "deepseek_vl" if vision.high is None else "deepseek_vl_hybrid",
        "text_config": {**written_decoder(language), "head_dim": language.head_dim},
        "tie_word_embeddings": language.tied,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh" if low.activation == "gelu_tanh" else low.activation,
            "hidden_size": low.width,
            "image_size": low.side * low.patch,
            "intermediate_size": low.mlp_width,
            "layer_norm_eps": low.eps,
            "model_type": "siglip_vision_model",
            "num_attention_heads": low.heads,
            "num_hidden_layers": low.depth,
            "patch_size": low.patch,
            "vision_use_head": bool(vision.unused),
        },
    }
    if vision.high is not None:
        high = vision.high
        if high.down != (2 * high.neck, 4 * high.neck):
            raise ConfigError(
                f"transformers' layout takes SAM's channels to grow twofold twice; got {high.neck, *high.down}."
            )
        published["high_res_vision_config"] = {
            "global_attn_indexes": list(high.full),
            "hidden_act": "gelu",
            "hidden_size": high.width,
            "image_size": high.side * high.patch,
            "layer_norm_eps": high.eps,
            "mlp_dim": high.mlp_width,
            "model_type": "sam_vision_model",
            "num_attention_heads": high.heads,
            "num_hidden_layers": high.depth,
            "output_channels": high.neck,
            "patch_size": high.patch,
            "window_size": high.window,
        }
    return published


def whole_side(part: Reader, side_px: int, patch: int) -> int:
    if side_px % patch:
        raise ConfigError(f"{part.where}: image_size {side_px} is no whole number of patches of {patch} px.")
    return side_px // patch


def read_decoder(text: Reader, tied: bool | None) -> DecoderConfig:
    """Llama's sizes; what a file leaves out is Llama's default, as the releases count on."""
    text.require("model_type", "llama")
    text.require("hidden_act", "silu")
    text.require("attention_bias", False)
    text.require("mlp_bias", False)
    text.require("rope_scaling", None)
    text.require("pretraining_tp", 1)
    rope = text.section("rope_parameters") or Reader({}, "rope_parameters")
    rope.require("rope_type", "default")
    width, heads = text.integer("hidden_size", 4096), text.integer("num_attention_heads", 32)
    head_dim = width // heads if text.get("head_dim", None) is None else text.integer("head_dim")
    stated = text.get("tie_word_embeddings", False)
    config = DecoderConfig(
        width=width,
        depth=text.integer("num_hidden_layers", 32),
        heads=heads,
        kv_heads=heads if text.get("num_key_value_heads", None) is None else text.integer("num_key_value_heads"),
        head_dim=head_dim,
        mlp_width=text.integer("intermediate_size", 11008),
        vocab=text.integer("vocab_size", 32000),
        eps=text.number("rms_norm_eps", 1e-6),
        theta=rope.number("rope_theta", text.number("rope_theta", 10000.0)),
        section=(head_dim // 2,),
        qkv_bias=False,
        tied=stated if tied is None else tied,
        context=text.integer("max_position_embeddings", 2048),
    )
    rope.finish()
    text.finish()
    return config


def written_decoder(language: DecoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "max_position_embeddings": language.context,
        "model_type": "llama",
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.depth,
        "num_key_value_heads": language.kv_heads,
        "rms_norm_eps": language.eps,
        "rope_theta": language.theta,
        "tie_word_embeddings": language.tied,
        "vocab_size": language.vocab,
    }
