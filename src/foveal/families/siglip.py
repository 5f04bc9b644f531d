"""SigLIP (Zhai et al. 2023) and SigLIP 2 at fixed sizes (Tschannen et al. 2025): two towers, a sigmoid a pair."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.text_config import TextConfig
from foveal.processing.patches import HALF
from foveal.processing.pictures import PictureProcessing
from foveal.processing.siglip_tokens import read_captions
from foveal.processing.square_files import PublishedSquare
from foveal.vision.config import PlainConfig, probe_pool_parameters

if TYPE_CHECKING:
    from foveal.families.dual import DualEncoder

ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
"""Published names of activations, and ours. The first that means one of ours is the one that is written."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a SigLIP model.

    Attributes:
        vision: the image tower; its pooling head has the same width, heads and MLP.
        text: the text tower; its `embed` is the width that pictures and texts share, the image tower's.
        side_px: side of the pictures whose patches the position table counts.
    """

    vision: PlainConfig
    text: TextConfig
    side_px: int

    def __post_init__(self) -> None:
        if self.text.embed != self.vision.width:
            raise ConfigError(
                f"texts become vectors of {self.text.embed} and pictures of {self.vision.width} numbers; "
                "projection_size has to be the image tower's hidden_size."
            )
        if self.side_px // self.vision.patch != self.vision.side:
            raise ConfigError(
                f"pictures of {self.side_px} px in patches of {self.vision.patch} px do not make {self.vision.side} "
                "patches a side."
            )


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json; what it leaves out has the defaults of the base size, on which published files rely."""
    top = Reader(published, "config.json")
    text = top.section("text_config") or Reader({}, "config.json: text_config")
    seen = top.section("vision_config") or Reader({}, "config.json: vision_config")
    top.get("initializer_factor", None)
    side_px, patch = seen.integer("image_size", 224), seen.integer("patch_size", 16)
    seen.require("vision_use_head", True)
    width = text.integer("hidden_size", 768)
    embed = text.get("projection_size", None)
    config = Config(
        vision=PlainConfig(
            width=seen.integer("hidden_size", 768),
            depth=seen.integer("num_hidden_layers", 12),
            heads=seen.integer("num_attention_heads", 12),
            mlp_width=seen.integer("intermediate_size", 3072),
            patch=patch,
            side=side_px // patch,
            channels=seen.integer("num_channels", 3),
            eps=seen.number("layer_norm_eps", 1e-6),
            activation=_activation(seen),
        ),
        text=TextConfig(
            width=width,
            depth=text.integer("num_hidden_layers", 12),
            heads=text.integer("num_attention_heads", 12),
            mlp_width=text.integer("intermediate_size", 3072),
            vocab=text.integer("vocab_size", 32000),
            context=text.integer("max_position_embeddings", 64),
            embed=width if embed is None else text.integer("projection_size"),
            causal=False,
            activation=_activation(text),
            pool="last",
            eps=text.number("layer_norm_eps", 1e-6),
            head_bias=True,
        ),
        side_px=side_px,
    )
    for part in (top, text, seen):
        part.finish()
    return config


def _activation(part: Reader) -> str:
    name = part.word("hidden_act", "gelu_pytorch_tanh")
    if name not in ACTIVATIONS:
        part.require("hidden_act", *ACTIVATIONS)
    return ACTIVATIONS[name]


def guess(layout: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The configuration of an `.npz` file of the authors. Pictures are as large as their patches: where pixels are left
    over (384 px in patches of 14), a config.json has to say so. Raises `ConfigError` for another layout."""
    if layout != "big_vision":
        raise ConfigError("the weights say too little of their model; put its config.json beside them.")
    patch, _, channels, width = shapes["img.embedding.kernel"]
    side = math.isqrt(shapes["img.pos_embedding"][1])
    _, context, said = shapes["txt.pos_embedding"]

    def sizes(tower: str) -> tuple[int, int, int]:
        """Depth, heads and MLP width."""
        first = f"{tower}.encoderblock_0."
        return (
            sum(n.startswith(f"{tower}.encoderblock_") and n.endswith(".LayerNorm_0.bias") for n in shapes),
            shapes[first + "MultiHeadDotProductAttention_0.query.bias"][0],
            shapes[first + "MlpBlock_0.Dense_0.bias"][0],
        )

    seen_sizes, said_sizes = sizes("img.Transformer"), sizes("txt.Encoder_0")

    return Config(
        vision=PlainConfig(
            width=width,
            depth=seen_sizes[0],
            heads=seen_sizes[1],
            mlp_width=seen_sizes[2],
            patch=patch,
            side=side,
            channels=channels,
            activation="gelu_tanh",
        ),
        text=TextConfig(
            vocab=shapes["txt.Embed_0.embedding"][0],
            width=said,
            depth=said_sizes[0],
            heads=said_sizes[1],
            mlp_width=said_sizes[2],
            context=context,
            embed=shapes["txt.head.bias"][0],
            causal=False,
            activation="gelu_tanh",
            eps=1e-6,
            head_bias=True,
        ),
        side_px=side * patch,
    )


def to_published(config: Config) -> dict[str, Any]:
    """config.json with every size stated."""
    vision, text = config.vision, config.text
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": "siglip_text_model",
            "attention_dropout": 0.0,
            "hidden_act": names[text.activation],
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "layer_norm_eps": text.eps,
            "max_position_embeddings": text.context,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.depth,
            "projection_size": text.embed,
            "vocab_size": text.vocab,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "attention_dropout": 0.0,
            "hidden_act": names[vision.activation],
            "hidden_size": vision.width,
            "image_size": config.side_px,
            "intermediate_size": vision.mlp_width,
            "layer_norm_eps": vision.eps,
            "num_attention_heads": vision.heads,
            "num_channels": vision.channels,
            "num_hidden_layers": vision.depth,
            "patch_size": vision.patch,
        },
    }


def build(config: Config) -> "DualEncoder":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.families.dual import DualEncoder
    from foveal.language.text_encoder import TextEncoder
    from foveal.vision.pooling import ProbeTower

    # Temperature 10 and offset -10 at first (section 3.2).
    return DualEncoder(
        ProbeTower(config.vision), TextEncoder(config.text), bias=True, scalar_shape=(1,), first_scale=math.log(10.0)
    )


def processing(config: Config) -> PictureProcessing:
    """Pictures are stretched to a square (bicubic), values from -1 to 1; texts are padded to the whole context."""
    return PictureProcessing(
        vision=PublishedSquare(
            side_px=config.side_px,
            patch=config.vision.patch,
            normalize=HALF,
            makers=("SiglipImageProcessor", "SiglipProcessor"),
        ),
        captions=lambda folder: read_captions(folder, context=config.text.context),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns; `scale` is the temperature and the offset."""
    vision = config.vision
    pool = probe_pool_parameters(vision.width, vision.mlp_width)
    return {"vision": vision.parameters + pool, "text": config.text.parameters, "scale": 2}


def _tower(width: int, depth: int, heads: int, mlp_width: int, patch: int, side_px: int) -> PlainConfig:
    return PlainConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width,
        patch=patch,
        side=side_px // patch,
        activation="gelu_tanh",
    )


BASE, LARGE, SO400M, GIANT = (768, 12, 12, 3072), (1024, 24, 16, 4096), (1152, 27, 16, 4304), (1536, 40, 16, 6144)
"""Width, depth, heads and MLP width of the towers."""


def _size(
    tower: tuple[int, int, int, int],
    patch: int,
    side_px: int,
    *,
    vocab: int = 32000,
    context: int = 64,
    text: tuple[int, int, int, int] | None = None,
) -> Config:
    width, depth, heads, mlp_width = text or tower
    return Config(
        vision=_tower(*tower, patch, side_px),
        text=TextConfig(
            vocab=vocab,
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp_width,
            context=context,
            embed=tower[0],
            causal=False,
            activation="gelu_tanh",
            eps=1e-6,
            head_bias=True,
        ),
        side_px=side_px,
    )


MANY, GEMMA = 250_000, 256_000
"""Vocabularies: the multilingual one of SigLIP (mC4), and Gemma's, which SigLIP 2 took over."""

FAMILY = Family(
    name="siglip",
    reads=("siglip",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.text.context,
    guess=guess,
    sizes={
        "base-patch16-224": _size(BASE, 16, 224),
        "base-patch16-256": _size(BASE, 16, 256),
        "base-patch16-256-multilingual": _size(BASE, 16, 256, vocab=MANY),
        "base-patch16-384": _size(BASE, 16, 384),
        "base-patch16-512": _size(BASE, 16, 512),
        "large-patch16-256": _size(LARGE, 16, 256),
        "large-patch16-384": _size(LARGE, 16, 384),
        "so400m-patch14-224": _size(SO400M, 14, 224, context=16),
        "so400m-patch14-384": _size(SO400M, 14, 384),
        "so400m-patch16-256-i18n": _size(SO400M, 16, 256, vocab=MANY),
        "2-base-patch32-256": _size(BASE, 32, 256, vocab=GEMMA),
        "2-base-patch16-224": _size(BASE, 16, 224, vocab=GEMMA),
        "2-base-patch16-256": _size(BASE, 16, 256, vocab=GEMMA),
        "2-base-patch16-384": _size(BASE, 16, 384, vocab=GEMMA),
        "2-base-patch16-512": _size(BASE, 16, 512, vocab=GEMMA),
        "2-large-patch16-256": _size(LARGE, 16, 256, vocab=GEMMA),
        "2-large-patch16-384": _size(LARGE, 16, 384, vocab=GEMMA),
        "2-large-patch16-512": _size(LARGE, 16, 512, vocab=GEMMA),
        "2-so400m-patch14-224": _size(SO400M, 14, 224, vocab=GEMMA),
        "2-so400m-patch14-384": _size(SO400M, 14, 384, vocab=GEMMA),
        "2-so400m-patch16-256": _size(SO400M, 16, 256, vocab=GEMMA),
        "2-so400m-patch16-384": _size(SO400M, 16, 384, vocab=GEMMA),
        "2-so400m-patch16-512": _size(SO400M, 16, 512, vocab=GEMMA),
        "2-giant-opt-patch16-256": _size(GIANT, 16, 256, vocab=GEMMA, text=SO400M),
        "2-giant-opt-patch16-384": _size(GIANT, 16, 384, vocab=GEMMA, text=SO400M),
        "tiny": _size((32, 2, 2, 64), 8, 32, vocab=640, context=16),
    },
)
