"""CLIP (Radford et al. 2021): an image tower and a causal text tower whose vectors are compared.

Image towers are vision transformers or residual networks. Configurations are read in transformers' form (nested
`text_config` and `vision_config`) and in open_clip's (`embed_dim`, `vision_cfg`, `text_cfg`); models with a residual
network, which transformers does not have, are written in open_clip's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError, neighbours
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.text_config import Pool, TextConfig
from foveal.processing.clip_tokens import ClipCaptions
from foveal.processing.patches import CLIP_COLOURS
from foveal.processing.pictures import PictureProcessing
from foveal.processing.square_files import PublishedSquare
from foveal.vision.config import PlainConfig
from foveal.vision.resnet_config import ResNetConfig

if TYPE_CHECKING:
    from foveal.families.dual import DualEncoder

ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' names of activations -> ours."""
PUBLISHED_ACTIVATION = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

_OLD_KEYS = """add_cross_attention attention_dropout bad_words_ids begin_suppress_tokens cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dropout early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id initializer_factor
    length_penalty logit_scale_init_value max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores prefix projection_dim pruned_heads remove_invalid_values repetition_penalty
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16""".split()
"""Keys that older releases of transformers wrote for every model; for CLIP none of them changes a number. The
projection's width is the one on the top level."""

LEGACY_EOS = 2
"""The `eos_token_id` of the first published files, which is not the closing token's; the highest id is meant."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a CLIP model.

    Attributes:
        vision: a vision transformer or a residual network.
        text: the text tower; its `embed` is the width that pictures and texts share.
        side_px: side of the pictures that the published files state.
    """

    vision: PlainConfig | ResNetConfig
    text: TextConfig
    side_px: int

    @property
    def embed(self) -> int:
        return self.text.embed


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in transformers' form, or in open_clip's, whole or its `model_cfg` alone."""
    if "model_cfg" in published:
        top = Reader(published, "config.json")
        top.section("preprocess_cfg")  # preprocessor_config.json states the same
        model = top.need("model_cfg")
        top.finish()
        return _from_open_clip(model)
    if "vision_cfg" in published:
        return _from_open_clip(Reader(published, "config.json"))
    top = Reader(published, "config.json")
    text, seen = _section(top, "text_config"), _section(top, "vision_config")
    embed = top.integer("projection_dim", 512)
    top.finish(_OLD_KEYS)
    return Config(
        vision=_vision(seen), text=_text(text, embed), side_px=seen.integer("image_size", 224),
    )  # fmt: skip


def _section(top: Reader, name: str) -> Reader:
    """A part of the configuration. The first releases state it a second time, in part, as NAME_dict."""
    own, again = top.section(name), top.section(f"{name}_dict")
    if own is None and again is None:
        return Reader({}, f"config.json: {name}")
    if own is None or again is None:
        return own or again or top
    for key, value in again.values.items():
        if value is not None and own.values.get(key, value) != value:
            raise ConfigError(
                f"config.json: {name} says {key} = {own.values[key]!r} but {name}_dict says {value!r}; keep one."
            )
    return Reader({**again.values, **own.values}, f"config.json: {name}")


def _activation(part: Reader) -> str:
    name = part.word("hidden_act", "quick_gelu")
    if name not in ACTIVATIONS:
        raise ConfigError(f"{part.where}: hidden_act is {name!r}; {neighbours(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _vision(seen: Reader) -> PlainConfig:
    side_px, patch = seen.integer("image_size", 224), seen.integer("patch_size", 32)
    config = PlainConfig(
        width=seen.integer("hidden_size", 768),
        depth=seen.integer("num_hidden_layers", 12),
        heads=seen.integer("num_attention_heads", 12),
        mlp_width=seen.integer("intermediate_size", 3072),
        patch=patch,
        side=side_px // patch,
        channels=seen.integer("num_channels", 3),
        eps=seen.number("layer_norm_eps", 1e-5),
        activation=_activation(seen),
        class_token=True,
        patch_bias=False,
        norm_before=True,
    )
    seen.finish(_OLD_KEYS)
    return config


def _text(text: Reader, embed: int) -> TextConfig:
    eos = text.get("eos_token_id", 49407)
    if isinstance(eos, bool) or not isinstance(eos, int | None):
        raise ConfigError(f"{text.where}: eos_token_id is {eos!r}; one id is expected.")
    pool: Pool = "highest" if eos in (LEGACY_EOS, None) else "eos"
    config = TextConfig(
        vocab=text.integer("vocab_size", 49408),
        width=text.integer("hidden_size", 512),
        depth=text.integer("num_hidden_layers", 12),
        heads=text.integer("num_attention_heads", 8),
        mlp_width=text.integer("intermediate_size", 2048),
        context=text.integer("max_position_embeddings", 77),
        embed=embed,
        causal=True,
        activation=_activation(text),
        pool=pool,
        eos=eos if pool == "eos" else None,
        eps=text.number("layer_norm_eps", 1e-5),
    )
    text.finish(_OLD_KEYS)
    return config


def _from_open_clip(model: Reader) -> Config:
    """open_clip's architecture files: what they leave out has the defaults of its classes."""
    embed = model.integer("embed_dim")
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    for key in ("model_type", "init_logit_scale", "cast_dtype", "custom_text"):
        model.get(key, None)
    model.require("init_logit_bias", None)
    model.require("nonscalar_logit_scale", False)
    model.require("multimodal_cfg", None)
    seen, text = model.need("vision_cfg"), model.need("text_cfg")
    model.finish()
    for key in ("timm_model_name", "ls_init_value", "act_kwargs", "norm_kwargs", "timm_model_pretrained"):
        seen.require(key, None, False)
    for key in ("attentional_pool", "global_average_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens",
                "input_patchnorm"):  # fmt: skip
        seen.require(key, False)
    seen.require("pool_type", "tok")
    seen.require("pos_embed_type", "learnable")
    seen.get("patch_dropout", 0.0)  # in training only
    width, layers = seen.integer("width", 768), seen.get("layers", 12)
    side_px, head_width = seen.integer("image_size", 224), seen.integer("head_width", 64)
    vision: PlainConfig | ResNetConfig
    if isinstance(layers, list | tuple):
        if len(layers) != 4:
            raise ConfigError(f"{seen.where}: layers is {layers!r}; expected a number, or four for the four stages.")
        seen.require("patch_size", None)
        stages = (int(layers[0]), int(layers[1]), int(layers[2]), int(layers[3]))
        vision = ResNetConfig(width=width, stages=stages, heads=width * 32 // head_width, side_px=side_px)
    else:
        patch = seen.integer("patch_size", 16)
        vision = PlainConfig(
            width=width,
            depth=seen.integer("layers", 12),
            heads=width // head_width,
            mlp_width=int(width * seen.number("mlp_ratio", 4.0)),
            patch=patch,
            side=side_px // patch,
            eps=1e-5,
            activation=activation,
            class_token=True,
            patch_bias=False,
            norm_before=True,
        )
    seen.finish()
    for key in ("hf_model_name", "ls_init_value", "act_kwargs", "norm_kwargs", "tokenizer_kwargs"):
        text.require(key, None)
    for key in ("embed_cls", "no_causal_mask", "output_tokens", "proj_bias"):
        text.require(key, False)
    text.require("pool_type", "argmax")
    text.require("proj_type", "linear")
    for key in ("hf_tokenizer_name", "pad_id"):
        text.get(key, None)
    wide = text.integer("width", 512)
    said = TextConfig(
        vocab=text.integer("vocab_size", 49408),
        width=wide,
        depth=text.integer("layers", 12),
        heads=text.integer("heads", 8),
        mlp_width=int(wide * text.number("mlp_ratio", 4.0)),
        context=text.integer("context_length", 77),
        embed=embed,
        causal=True,
        activation=activation,
        pool="highest",
    )
    text.finish()
    return Config(vision=vision, text=said, side_px=side_px)


def guess(layout: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The configuration of one of OpenAI's archives: heads of 64, quick GELU, as all of them have.

    Raises `ConfigError` for weights of others, which have the same names and may have another activation.
    """
    if layout not in ("original", "resnet") or "input_resolution" not in shapes:
        raise ConfigError(
            "the weights do not say which activation their model has (they are not OpenAI's own archive); put its "
            "config.json or open_clip_config.json beside them."
        )
    width, embed = shapes["ln_final.weight"][0], shapes["text_projection"][1]
    text = TextConfig(
        vocab=shapes["token_embedding.weight"][0],
        width=width,
        depth=sum(n.startswith("transformer.") and n.endswith("ln_1.weight") for n in shapes),
        heads=width // 64,
        mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        context=shapes["positional_embedding"][0],
        embed=embed,
        causal=True,
        activation="quick_gelu",
        pool="highest",
    )
    if layout == "resnet":
        first = shapes["visual.layer1.0.conv1.weight"][0]
        stages = [
            sum(n.startswith(f"visual.layer{k}.") and n.endswith(".conv1.weight") for n in shapes) for k in range(1, 5)
        ]
        side_px = 32 * math.isqrt(shapes["visual.attnpool.positional_embedding"][0])
        return _resnet(text, first, (stages[0], stages[1], stages[2], stages[3]), side_px)
    seen, _, _, patch = shapes["visual.conv1.weight"]
    return _vit(
        text,
        seen,
        sum(n.startswith("visual.transformer.") and n.endswith("ln_1.weight") for n in shapes),
        seen // 64,
        patch,
        side_px=patch * math.isqrt(shapes["visual.positional_embedding"][0]),
        mlp_width=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
    )


def to_published(config: Config) -> dict[str, Any]:
    """config.json in transformers' form, or for residual networks, in open_clip's."""
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        return _to_open_clip(config, vision)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            "bos_token_id": 0 if text.eos is None else text.eos - 1,
            "eos_token_id": LEGACY_EOS if text.eos is None else text.eos,
            "hidden_act": PUBLISHED_ACTIVATION[text.activation],
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "layer_norm_eps": text.eps,
            "max_position_embeddings": text.context,
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.depth,
            "projection_dim": config.embed,
            "vocab_size": text.vocab,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": PUBLISHED_ACTIVATION[vision.activation],
            "hidden_size": vision.width,
            "image_size": config.side_px,
            "intermediate_size": vision.mlp_width,
            "layer_norm_eps": vision.eps,
            "num_attention_heads": vision.heads,
            "num_channels": vision.channels,
            "num_hidden_layers": vision.depth,
            "patch_size": vision.patch,
            "projection_dim": config.embed,
        },
    }


def _to_open_clip(config: Config, vision: ResNetConfig) -> dict[str, Any]:
    text = config.text
    if text.activation == "gelu_tanh" or text.mlp_width % text.width or text.pool != "highest" or text.eps != 1e-5:
        raise ConfigError("this text tower beside a residual network has no published form; open_clip's cannot say it.")
    return {
        "model_type": "clip",
        "model_cfg": {
            "embed_dim": config.embed,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": config.side_px,
                "layers": list(vision.stages),
                "width": vision.width,
                "head_width": vision.width * 32 // vision.heads,
                "patch_size": None,
            },
            "text_cfg": {
                "context_length": text.context,
                "vocab_size": text.vocab,
                "width": text.width,
                "heads": text.heads,
                "layers": text.depth,
                "mlp_ratio": text.mlp_width // text.width,
            },
        },
    }


def build(config: Config) -> "DualEncoder":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.families.dual import DualEncoder
    from foveal.language.text_encoder import TextEncoder
    from foveal.vision.class_token import ClassTokenTower
    from foveal.vision.plain import PlainTower
    from foveal.vision.resnet import ResNetTower

    vision, text = config.vision, TextEncoder(config.text)
    if isinstance(vision, ResNetConfig):
        return DualEncoder(ResNetTower(vision, config.embed), text)
    return DualEncoder(ClassTokenTower(PlainTower(vision), config.embed), text)


@dataclass(frozen=True, kw_only=True)
class OneSize(PublishedSquare):
    """Squares of the size for which the towers were trained; the folder must not state another."""

    def read(self, folder: Path) -> "OneSize":
        """See `Vision.read`."""
        found = super().read(folder)
        if found.side_px != self.side_px:
            raise ConfigError(
                f"{folder}: the processor's settings make pictures of {found.side_px} px, but config.json describes a "
                f"tower for {self.side_px} px; take both from one model."
            )
        return OneSize(**vars(found))


def processing(config: Config) -> PictureProcessing:
    """The shorter side to the square's, then its middle; captions in CLIP's own vocabulary."""
    return PictureProcessing(
        vision=OneSize(
            side_px=config.side_px,
            # A residual network takes the whole picture as one patch.
            patch=config.side_px if isinstance(config.vision, ResNetConfig) else config.vision.patch,
            normalize=CLIP_COLOURS,
            fit="crop",
            makers=("CLIPImageProcessor", "CLIPProcessor"),
        ),
        captions=lambda folder: ClipCaptions.from_folder(folder, context=config.text.context),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns."""
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        seen = vision.parameters(config.embed)
    else:
        seen = vision.parameters + vision.width * config.embed
    return {"vision": seen, "text": config.text.parameters, "scale": 1}


def _text_size(width: int, heads: int, embed: int, *, depth: int = 12, activation: str = "quick_gelu") -> TextConfig:
    return TextConfig(
        vocab=49408,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        context=77,
        embed=embed,
        causal=True,
        activation=activation,
        pool="highest",
    )


def _vit(
    text: TextConfig, width: int, depth: int, heads: int, patch: int, *, side_px: int = 224, mlp_width: int = 0
) -> Config:
    vision = PlainConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=mlp_width or 4 * width,
        patch=patch,
        side=side_px // patch,
        eps=1e-5,
        activation=text.activation,
        class_token=True,
        patch_bias=False,
        norm_before=True,
    )
    return Config(vision=vision, text=text, side_px=side_px)


def _resnet(text: TextConfig, width: int, stages: tuple[int, int, int, int], side_px: int) -> Config:
    vision = ResNetConfig(width=width, stages=stages, heads=width // 2, side_px=side_px)
    return Config(vision=vision, text=text, side_px=side_px)


FAMILY = Family(
    name="clip",
    reads=("clip",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.text.context,
    layout=lambda config: "resnet" if isinstance(config.vision, ResNetConfig) else None,
    guess=guess,
    sizes={
        "base-patch32": _vit(_text_size(512, 8, 512), 768, 12, 12, 32),
        "base-patch16": _vit(_text_size(512, 8, 512), 768, 12, 12, 16),
        "large-patch14": _vit(_text_size(768, 12, 768), 1024, 24, 16, 14),
        "large-patch14-336": _vit(_text_size(768, 12, 768), 1024, 24, 16, 14, side_px=336),
        "bigg-14": _vit(
            _text_size(1280, 20, 1280, depth=32, activation="gelu"), 1664, 48, 16, 14, mlp_width=8192
        ),
        "rn50": _resnet(_text_size(512, 8, 1024), 64, (3, 4, 6, 3), 224),
        "rn101": _resnet(_text_size(512, 8, 512), 64, (3, 4, 23, 3), 224),
        "rn50x4": _resnet(_text_size(640, 10, 640), 80, (4, 6, 10, 6), 288),
        "rn50x16": _resnet(_text_size(768, 12, 768), 96, (6, 8, 18, 8), 384),
        "rn50x64": _resnet(_text_size(1024, 16, 1024), 128, (3, 15, 36, 10), 448),
        "tiny": _vit(
            TextConfig(
                vocab=640, width=32, depth=2, heads=2, mlp_width=64, context=24, embed=24, causal=True,
                activation="quick_gelu", pool="highest",
            ),
            48, 2, 3, 8, side_px=32,
        ),
    },
)  # fmt: skip
