"""Qwen-VL and Qwen-VL-Chat (Bai et al. 2023): bigG tower, resampler with 256 queries, Qwen decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.config import DecoderConfig
from foveal.processing.grounding import TaggedBoxes
from foveal.processing.patches import CLIP_COLOURS
from foveal.processing.picture_chat import SPECIALS, PictureChat, check_pictures, named_pictures, settle, shorten
from foveal.processing.positions import PlaceInPrompt
from foveal.processing.processor import Processing
from foveal.processing.square import Square
from foveal.processing.tiktoken import read_tiktoken
from foveal.processing.tokens import Tokenizer
from foveal.vision.config import PlainConfig

if TYPE_CHECKING:
    from foveal.families.vlm import VLM

SIDE = 16
"""Learned positions and queries lie in a square of this side: 256 rows in the checkpoint, 256 tokens a picture."""

HEAD = 128
"""Head size of the resampler's attention, whatever its width."""


@dataclass(frozen=True, kw_only=True)
class StretchedConfig(DecoderConfig):
    """Sizes of a Qwen decoder. `section` has one entry: half the features of a head that turn.

    Attributes:
        trained: tokens that the model was trained on at a time (`seq_length`).
        ntk: longer prompts turn with a larger base (`use_dynamic_ntk`).
        logn: queries beyond `trained` are multiplied by a growing factor (`use_logn_attn`).
    """

    trained: int = 2048
    ntk: bool = True
    logn: bool = True

    def __post_init__(self) -> None:
        if len(self.section) != 1 or not 4 <= 2 * self.section[0] <= self.head_dim:
            raise ConfigError(
                f"rotary section {list(self.section)} has to be one number: half of the 4 to {self.head_dim} features "
                "of a head that turn."
            )
        if self.heads != self.kv_heads or self.heads * self.head_dim != self.width:
            raise ConfigError(
                f"{self.heads} query heads and {self.kv_heads} key heads of {self.head_dim} do not both make the "
                f"width {self.width}."
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Qwen-VL model; `image_start` is the id of `<img>`."""

    vision: PlainConfig
    language: StretchedConfig
    side_px: int = 448
    image_start: int = 151857

    def __post_init__(self) -> None:
        if self.language.width % HEAD:
            raise ConfigError(f"the width {self.language.width} is no whole multiple of {HEAD}, the resampler's head.")
        if self.side_px % self.vision.patch:
            raise ConfigError(f"pictures of {self.side_px} px are not whole patches of {self.vision.patch} px.")


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json of the release."""
    top = Reader(published, "config.json")
    seen = top.need("visual")
    width, heads = top.integer("hidden_size"), top.integer("num_attention_heads")
    size = top.integer("kv_channels", 128)
    inner = top.integer("intermediate_size")
    if inner % 2:
        raise ConfigError(f"config.json: intermediate_size {inner} is odd; it counts the gate and the gated half.")
    turned = int(size * top.number("rotary_pct", 1.0))
    top.require("no_bias", True)
    top.require("scale_attn_weights", True)
    top.require("tie_word_embeddings", False)
    for key in ("attn_dropout_prob", "emb_dropout_prob"):
        top.require(key, 0.0)
    for key in ("bf16", "fp16", "fp32", "onnx_safe", "tokenizer_type", "use_flash_attn"):
        top.get(key, None)  # the type of the weights, and tools of the release
    language = StretchedConfig(
        width=width,
        depth=top.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        mlp_width=inner // 2,
        vocab=top.integer("vocab_size"),
        eps=top.number("layer_norm_epsilon", 1e-6),
        theta=top.number("rotary_emb_base", 10000.0),
        section=(turned // 2,),
        context=top.integer("max_position_embeddings", 8192),
        trained=top.integer("seq_length", 2048),
        ntk=top.flag("use_dynamic_ntk", True),
        logn=top.flag("use_logn_attn", True),
    )
    seen.require("output_dim", width)
    seen.require("n_queries", SIDE**2)
    tower = seen.integer("width")
    vision = PlainConfig(
        width=tower,
        depth=seen.integer("layers"),
        heads=seen.integer("heads"),
        mlp_width=int(tower * seen.number("mlp_ratio", 4.9231)),
        patch=seen.integer("patch_size", 14),
        side=SIDE,
        **TOWER,
    )
    config = Config(
        vision=vision,
        language=language,
        side_px=seen.integer("image_size", 448),
        image_start=seen.integer("image_start_id", 151857),
    )
    for part in (top, seen):
        part.finish()
    return config


def to_published(config: Config) -> dict[str, Any]:
    """config.json as the release writes it."""
    vision, language = config.vision, config.language
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "emb_dropout_prob": 0.0,
        "hidden_size": language.width,
        "intermediate_size": 2 * language.mlp_width,
        "kv_channels": language.head_dim,
        "layer_norm_epsilon": language.eps,
        "max_position_embeddings": language.context,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.depth,
        "rotary_emb_base": language.theta,
        "rotary_pct": 2 * language.section[0] / language.head_dim,
        "scale_attn_weights": True,
        "seq_length": language.trained,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "use_cache": True,
        "use_dynamic_ntk": language.ntk,
        "use_flash_attn": False,
        "use_logn_attn": language.logn,
        "visual": {
            "heads": vision.heads,
            "image_size": config.side_px,
            "image_start_id": config.image_start,
            "layers": vision.depth,
            "mlp_ratio": _ratio(vision.mlp_width, vision.width),
            "output_dim": language.width,
            "patch_size": vision.patch,
            "width": vision.width,
        },
        "vocab_size": language.vocab,
    }


def _ratio(mlp_width: int, width: int) -> float:
    """The shortest decimal that gives `mlp_width` again when it multiplies `width` and is rounded down."""
    for digits in range(17):
        for value in (round(mlp_width / width, digits), round(mlp_width / width + 0.5 * 10.0**-digits, digits)):
            if int(width * value) == mlp_width:
                return value
    raise ConfigError(f"no ratio makes a vision MLP of width {mlp_width} from {width}.")


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.adapter.resampler import Resampler
    from foveal.families.qwen_vl_network import HeadwiseAttention, QwenVL, StretchedDecoder
    from foveal.vision.plain import PlainTower

    vision, language = config.vision, config.language
    return QwenVL(
        vision=PlainTower(vision, attention=HeadwiseAttention),
        adapter=Resampler(vision.width, language.width, side=SIDE, heads=language.width // HEAD),
        language=StretchedDecoder(language),
    )


_TOKENIZER = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}
"""tokenizer_config.json of the release."""


def _tokenizer(folder: Path, image_start: int) -> Tokenizer:
    """The tokenizer of a folder; `ConfigError` when it and config.json do not belong together."""
    tokenizer = read_tiktoken(folder, SPECIALS, _TOKENIZER)
    if tokenizer.special("<img>") != image_start:
        raise ConfigError(
            f"config.json says visual.image_start_id = {image_start}, the tokenizer says "
            f"{tokenizer.special('<img>')}; the files come from different models: take both from one."
        )
    return tokenizer


def processing(config: Config) -> Processing:
    return Processing(
        vision=Square(
            side_px=config.side_px, patch=config.vision.patch, normalize=CLIP_COLOURS, tokens=SIDE**2, alpha="drop"
        ),
        chat=PictureChat(),
        boxes=TaggedBoxes(ref=("<ref>", "</ref>"), box=("<box>", "</box>"), quad=("<quad>", "</quad>")),
        positions=PlaceInPrompt(),
        tokenizer=partial(_tokenizer, image_start=config.image_start),
        arrange=check_pictures,
        places=named_pictures,
        shorten=shorten,
        settle=settle,
        stops=("<|im_end|>", "<|im_start|>"),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part holds; the resampler's table of positions is among them, as in the release."""
    d = config.language.width
    adapter = 2 * SIDE**2 * d + config.vision.width * d + 3 * 2 * d + (d + 1) * 4 * d + d * d
    return {"vision": config.vision.parameters, "adapter": adapter, "language": config.language.parameters}


TOWER: dict[str, Any] = {"eps": 1e-6, "patch_bias": False, "norm_before": True, "norm_after": False}

_RELEASED = Config(
    vision=PlainConfig(width=1664, depth=48, heads=16, mlp_width=8192, patch=14, side=SIDE, **TOWER),
    language=StretchedConfig(
        width=4096, depth=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11008, vocab=151936, theta=10000.0,
        section=(64,), context=8192,
    ),
)  # fmt: skip

FAMILY = Family(
    name="qwen_vl",
    reads=("qwen",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    sizes={
        "base": _RELEASED,
        "chat": _RELEASED,
        "tiny": Config(
            vision=PlainConfig(width=32, depth=2, heads=2, mlp_width=64, patch=14, side=SIDE, **TOWER),
            language=StretchedConfig(
                width=128, depth=2, heads=4, kv_heads=4, head_dim=32, mlp_width=96, vocab=512, theta=10000.0,
                section=(16,), context=4096, trained=300,
            ),
            image_start=502,
        ),
    },
)  # fmt: skip
