"""DeepSeek-VL (Lu et al. 2024): SigLIP alone (1.3B), or SigLIP and SAM side by side (7B), before a Llama decoder.

Two layouts are read and written: DeepSeek's own (model_type `multi_modality`) and that of transformers (`deepseek_vl`,
`deepseek_vl_hybrid`). A model keeps the layout it was read in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from foveal.core.errors import ConfigError, neighbours
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.config import DecoderConfig
from foveal.processing.converted import tokenizer_files
from foveal.processing.no_boxes import NoBoxes
from foveal.processing.padded import PaddedSquare, Sight
from foveal.processing.patches import CLIP_COLOURS, HALF, Normalize
from foveal.processing.positions import Plain
from foveal.processing.processor import Processing, Processor
from foveal.processing.published import read_tokenizer
from foveal.processing.user_assistant import BEGIN, END, IMAGE, UserAssistant, arranged
from foveal.vision.config import PlainConfig
from foveal.vision.hybrid_config import SamConfig, TowersConfig, latent_pool, probe_pool

if TYPE_CHECKING:
    from foveal.families.vlm import VLM

Layout: TypeAlias = Literal["original", "transformers"]

SIGLIP: Mapping[str, Mapping[str, Any]] = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4},
    "siglip_so400m_patch14_384": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
    "siglip_so400m_patch14_224": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
    "siglip_tiny_24": {"width": 32, "layers": 2, "heads": 2, "patch_size": 4, "mlp_ratio": 4},
    "siglip_tiny_12": {"width": 40, "layers": 3, "heads": 4, "patch_size": 8, "mlp_ratio": 4},
}
"""Sizes of SigLIP towers by `model_name`, which stand in DeepSeek's code and not in its files. `tiny`: for tests."""

SAM: Mapping[str, Mapping[str, Any]] = {
    "sam_b_downsample": {
        "width": 768, "layers": 12, "heads": 12, "patch_size": 16, "mlp_ratio": 4, "prompt_embed_dim": 256,
        "global_attn_indexes": [2, 5, 8, 11], "downsample_channels": [512, 1024],
    },
    "sam_tiny_downsample": {
        "width": 36, "layers": 4, "heads": 3, "patch_size": 8, "mlp_ratio": 4, "prompt_embed_dim": 8,
        "global_attn_indexes": [1, 3], "downsample_channels": [16, 32],
    },
}  # fmt: skip
"""The same of SAM towers."""


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


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in either layout."""
    top = Reader(published, "config.json")
    if published.get("model_type") == "multi_modality":
        return _from_original(top)
    return _from_transformers(top)


def _from_original(top: Reader) -> Config:
    for key in sorted(k for k in top.values if k.startswith("gen_")):
        raise ConfigError(f"{top.where}: {key!r}: this is a model that makes pictures (Janus); DeepSeek-VL only sees.")
    language = _decoder(top.need("language_config"), tied=None)
    seen = top.need("vision_config")
    seen.require("cls", "CLIPVisionTower", "HybridVisionTower")
    hybrid = seen.get("cls", "CLIPVisionTower") == "HybridVisionTower"
    params = seen.need("params")
    small = params.need("low_res_cfg") if hybrid else params
    low, low_colours = _original_siglip(small)
    unused = latent_pool(low.width, low.mlp_width)
    high, high_colours = None, None
    if hybrid:
        params.require("concat_type", "tuple")
        large = params.need("high_res_cfg")
        high, high_colours = _original_sam(large)
        large.finish()
        for side, width in (("high", high.down[1]), ("low", low.width)):
            unused |= {f"{side}_norm_weight": (width,), f"{side}_norm_bias": (width,)}
        params.require("width", low.width)
        for key in ("freeze_high", "freeze_low"):
            params.get(key, True)  # steers training only
        params.finish()
    small.finish()
    aligner = top.need("aligner_config")
    aligner.require("cls", "MlpProjector")
    mapped = aligner.need("params")
    mapped.require("projector_type", "low_high_hybrid_split_mlp_gelu" if hybrid else "mlp_gelu")
    mapped.require("depth", 2)
    mapped.require("input_dim", low.width)
    mapped.require("n_embed", language.width)
    if high is not None and high.down[1] != low.width:
        raise ConfigError(f"{params.where}: SAM gives {high.down[1]} features, SigLIP {low.width}; expected as many.")
    for part in (top, seen, aligner, mapped):
        part.finish()
    vision = TowersConfig(
        low=low, high=high, low_colours=low_colours, high_colours=high_colours, unused=tuple(unused.items())
    )
    return Config(vision=vision, language=language)


def _original_siglip(part: Reader) -> tuple[PlainConfig, Normalize | None]:
    sizes = _sizes(part, SIGLIP, "siglip_large_patch16_384")
    part.require("output_dim", sizes["width"])
    return PlainConfig(**_plain(part, sizes)), _colours(part)


def _original_sam(part: Reader) -> tuple[SamConfig, Normalize | None]:
    sizes = _sizes(part, SAM, "sam_b_downsample")
    first, second = sizes["downsample_channels"]
    part.require("output_dim", second)
    tower = SamConfig(
        **_plain(part, sizes),
        norm_after=False,
        full=tuple(sizes["global_attn_indexes"]),
        neck=sizes["prompt_embed_dim"],
        down=(first, second),
    )
    return tower, _colours(part)


def _sizes(part: Reader, known: Mapping[str, Mapping[str, Any]], default: str) -> dict[str, Any]:
    """A tower's sizes: by its name, and what the file states itself stands above that."""
    name = part.get("model_name", default)
    keys = known[default]
    stated = {key: part.get(key, None) for key in keys}
    if name not in known and None in stated.values():
        missing = [key for key, value in stated.items() if value is None]
        raise ConfigError(
            f"{part.where}: unknown model_name {name!r}; {neighbours(str(name), known)} DeepSeek's code keeps the "
            f"sizes of towers under such names; for another tower state them beside it: {', '.join(missing)}."
        )
    return {key: known[name][key] if value is None else value for key, value in stated.items()}


def _plain(part: Reader, sizes: Mapping[str, Any]) -> dict[str, Any]:
    part.require("select_layer", -1)
    part.require("select_feature", "same")
    part.get("ckpt_path", "")  # where the authors' training began
    side_px, patch, width = part.integer("image_size"), sizes["patch_size"], sizes["width"]
    return {
        "width": width,
        "depth": sizes["layers"],
        "heads": sizes["heads"],
        "mlp_width": int(width * sizes["mlp_ratio"]),
        "patch": patch,
        "side": _side(part, side_px, patch),
    }


def _side(part: Reader, side_px: int, patch: int) -> int:
    if side_px % patch:
        raise ConfigError(f"{part.where}: image_size {side_px} is no whole number of patches of {patch} px.")
    return side_px // patch


def _colours(part: Reader) -> Normalize | None:
    mean, std = part.get("pixel_mean", None), part.get("pixel_std", None)
    if mean is None or std is None:
        return None
    return Normalize(mean=tuple(mean), std=tuple(std))


def _from_transformers(top: Reader) -> Config:
    hybrid = top.values.get("model_type") == "deepseek_vl_hybrid"
    language = _decoder(top.need("text_config"), tied=top.get("tie_word_embeddings", None))
    seen = top.need("vision_config")
    activation = seen.get("hidden_act", "gelu_pytorch_tanh")
    width, patch = seen.integer("hidden_size", 768), seen.integer("patch_size", 16)
    low = PlainConfig(
        width=width,
        depth=seen.integer("num_hidden_layers", 12),
        heads=seen.integer("num_attention_heads", 12),
        mlp_width=seen.integer("intermediate_size", 3072),
        patch=patch,
        side=_side(seen, seen.integer("image_size", 224), patch),
        eps=float(seen.get("layer_norm_eps", 1e-6)),
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
    ratio = part.get("mlp_ratio", 4.0)
    return SamConfig(
        width=width,
        depth=part.integer("num_hidden_layers", 12),
        heads=part.integer("num_attention_heads", 12),
        mlp_width=part.get("mlp_dim", None) or int(width * ratio),
        patch=patch,
        side=_side(part, part.integer("image_size", 1024), patch),
        eps=float(part.get("layer_norm_eps", 1e-6)),
        norm_after=False,
        window=part.integer("window_size", 14),
        full=tuple(part.get("global_attn_indexes", (2, 5, 8, 11))),
        neck=neck,
        down=(2 * neck, 4 * neck),
        resized=4 * low_side,
    )


def _decoder(text: Reader, tied: bool | None) -> DecoderConfig:
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
    head_dim = text.get("head_dim", None) or width // heads
    stated = text.get("tie_word_embeddings", False)
    config = DecoderConfig(
        width=width,
        depth=text.integer("num_hidden_layers", 32),
        heads=heads,
        kv_heads=text.get("num_key_value_heads", None) or heads,
        head_dim=head_dim,
        mlp_width=text.integer("intermediate_size", 11008),
        vocab=text.integer("vocab_size", 32000),
        eps=float(text.get("rms_norm_eps", 1e-6)),
        theta=float(rope.get("rope_theta", text.get("rope_theta", 10000.0))),
        section=(head_dim // 2,),
        qkv_bias=False,
        tied=stated if tied is None else tied,
        context=text.integer("max_position_embeddings", 2048),
    )
    rope.finish()
    text.finish()
    return config


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the layout of the configuration."""
    return _to_original(config) if config.layout == "original" else _to_transformers(config)


def _to_original(config: Config) -> dict[str, Any]:
    vision, language = config.vision, config.language
    if language.heads * language.head_dim != language.width:
        raise ConfigError(f"{language.heads} heads of {language.head_dim} do not make the width {language.width}.")
    low = _written_siglip(vision.low, vision.low_colours)
    params: dict[str, Any] = low
    if vision.high is not None:
        params = {
            "concat_type": "tuple",
            "freeze_high": True,
            "freeze_low": True,
            "high_res_cfg": {"ckpt_path": "", "output_dim": vision.high.down[1], **_written_sam(vision)},
            "low_res_cfg": {"ckpt_path": "", "output_dim": vision.low.width, **low},
        }
    return {
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": {
                "depth": 2,
                "input_dim": vision.low.width,
                "n_embed": language.width,
                "projector_type": "mlp_gelu" if vision.high is None else "low_high_hybrid_split_mlp_gelu",
            },
        },
        "architectures": ["MultiModalityCausalLM"],
        "language_config": _written_decoder(language),
        "model_type": "multi_modality",
        "vision_config": {
            "cls": "CLIPVisionTower" if vision.high is None else "HybridVisionTower",
            "model_type": "vision",
            "params": params,
        },
    }


def _written_siglip(tower: PlainConfig, colours: Normalize | None) -> dict[str, Any]:
    sizes = _written_sizes(tower)
    return _written_tower(tower, sizes, SIGLIP, "siglip", colours)


def _written_sam(vision: TowersConfig) -> dict[str, Any]:
    tower = vision.high
    if tower is None:
        return {}
    sizes = {
        **_written_sizes(tower),
        "prompt_embed_dim": tower.neck,
        "global_attn_indexes": list(tower.full),
        "downsample_channels": list(tower.down),
    }
    if (tower.window, tower.resized, tower.eps) != (14, 96, 1e-6):
        raise ConfigError(
            f"SAM with window {tower.window}, resized {tower.resized}, eps {tower.eps:g} cannot be stated in "
            "DeepSeek's own layout, whose code fixes 14, 96 and 1e-6; save with layout='transformers'."
        )
    return _written_tower(tower, sizes, SAM, "sam", vision.high_colours)


def _written_sizes(tower: PlainConfig) -> dict[str, Any]:
    return {
        "width": tower.width,
        "layers": tower.depth,
        "heads": tower.heads,
        "patch_size": tower.patch,
        "mlp_ratio": tower.mlp_width / tower.width,
    }


def _written_tower(
    tower: PlainConfig,
    sizes: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    kind: str,
    colours: Normalize | None,
) -> dict[str, Any]:
    """A tower by the name that DeepSeek's code knows it by; one without such a name with all its sizes."""
    side_px = tower.side * tower.patch

    def same(other: Mapping[str, Any]) -> bool:
        mlp_width = int(other["width"] * other["mlp_ratio"])
        return mlp_width == tower.mlp_width and all(sizes[k] == v for k, v in other.items() if k != "mlp_ratio")

    name = next((n for n, other in known.items() if same(other)), None)
    stated = {"model_name": name} if name else {"model_name": f"{kind}_{tower.width}x{tower.depth}", **sizes}
    found = {"pixel_mean": list(colours.mean), "pixel_std": list(colours.std)} if colours else {}
    return {"image_size": side_px, **stated, **found, "select_feature": "same", "select_layer": -1}


def _written_decoder(language: DecoderConfig) -> dict[str, Any]:
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


def _to_transformers(config: Config) -> dict[str, Any]:
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
        "text_config": {**_written_decoder(language), "head_dim": language.head_dim},
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


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.adapter.mlp import Projector, SplitProjector
    from foveal.families.deepseek_vl_network import TwoSizes
    from foveal.language.decoder import Decoder
    from foveal.vision.hybrid import Towers

    low, high, width = config.vision.low, config.vision.high, config.language.width
    adapter = Projector(low.width, width) if high is None else SplitProjector(high.down[1], low.width, width)
    return TwoSizes(vision=Towers(config.vision), adapter=adapter, language=Decoder(config.language))


def processing(config: Config) -> Processing:
    """Padded squares at one size or two, words without boxes, in the way of the configuration's layout."""
    vision, original = config.vision, config.layout == "original"
    low, high = vision.low, vision.high
    # Where a tower normalises by itself, the processor does not; a checkpoint's own files have the last word.
    small = Sight(
        side_px=low.side * low.patch,
        patch=low.patch,
        colours=vision.low_colours or HALF,
        normalize=vision.low_colours is None,
        resample=3 if high is None else 2,
    )
    first = small
    if high is not None:
        colours, own = vision.high_colours or CLIP_COLOURS, vision.high_colours is None
        first = Sight(side_px=high.side * high.patch, patch=high.patch, colours=colours, normalize=own)
    return Processing(
        vision=PaddedSquare(
            first=first, small=None if high is None else small, tokens=vision.tokens, original=original
        ),
        chat=UserAssistant(original=original, image_id=not original),
        boxes=NoBoxes(),
        positions=Plain(),
        tokenizer=partial(read_tokenizer, allow=("add_bos_token",), needed=(IMAGE,)),
        arrange=arranged,
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part holds; those of the towers count what is kept without use."""
    vision, width = config.vision, config.language.width
    adapter = (vision.low.width + 1) * width
    if vision.high is not None:
        adapter = (vision.low.width + vision.high.down[1] + 2) * (width // 2)
    adapter += (width + 1) * width
    return {"vision": vision.parameters, "adapter": adapter, "language": config.language.parameters}


def layout(config: Config) -> str | None:
    """The name map with which the weights are saved."""
    if config.layout == "transformers":
        return "transformers"
    return None if config.vision.high is None else "hybrid"


def portable(config: Config, processor: Processor) -> tuple[Config, Processor]:
    """The same model in transformers' layout, in which its processor normalises and nothing is kept without use."""
    if config.layout == "transformers":
        return config, processor
    seen = processor.processing.vision
    if not isinstance(seen, PaddedSquare):
        raise ConfigError(f"the processor sees {type(seen).__name__}; DeepSeek-VL's sees padded squares.")
    high = config.vision.high_colours if config.vision.high is not None else config.vision.low_colours
    first = _normalizing(seen.first, high)
    small = (
        None if seen.small is None else _normalizing(replace(seen.small, normalize=False), config.vision.low_colours)
    )
    vision = replace(config.vision, low_colours=None, high_colours=None, unused=())
    moved = replace(config, vision=vision, layout="transformers")
    declared = processing(moved)
    declared = replace(declared, vision=replace(seen, first=first, small=small, original=False))
    files = tokenizer_files(
        processor.tokenizer,
        begin=BEGIN,
        end=END,
        image=IMAGE,
        template=declared.chat.template() or "",
        context_tokens=processor.context_tokens,
    )
    files |= {name: json.dumps(value, indent=2) + "\n" for name, value in declared.vision.files().items()}
    return moved, Processor(
        tokenizer=processor.tokenizer, processing=declared, context_tokens=processor.context_tokens, files=files
    )


def _normalizing(sight: Sight, colours: Normalize | None) -> Sight:
    """A size that is normalised once, with the colours of its tower or of the processor."""
    if sight.normalize == (colours is not None):
        often = "twice" if colours else "never"
        raise ConfigError(
            f"the pixels of {sight.side_px} px pictures are normalised {often}; transformers does it once."
        )
    if colours is not None and colours != sight.colours and sight.padding != replace(sight, colours=colours).padding:
        raise ConfigError("padding and normalisation use different colours; transformers' processor knows one pair.")
    return replace(sight, colours=colours or sight.colours, normalize=True)


def _size(
    low: PlainConfig, high: SamConfig | None, language: DecoderConfig, *, low_colours: Normalize | None = HALF
) -> Config:
    unused = latent_pool(low.width, low.mlp_width)
    if high is not None:
        for side, width in (("high", high.down[1]), ("low", low.width)):
            unused |= {f"{side}_norm_weight": (width,), f"{side}_norm_bias": (width,)}
    vision = TowersConfig(
        low=low,
        high=high,
        low_colours=low_colours,
        high_colours=None if high is None else CLIP_COLOURS,
        unused=tuple(unused.items()),
    )
    return Config(vision=vision, language=language)


def _text(
    width: int, depth: int, heads: int, mlp_width: int, vocab: int = 102400, context: int = 16384
) -> DecoderConfig:
    return DecoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mlp_width=mlp_width,
        vocab=vocab,
        theta=10000.0,
        section=(width // heads // 2,),
        qkv_bias=False,
        context=context,
    )


SIGLIP_L = PlainConfig(width=1024, depth=24, heads=16, mlp_width=4096, patch=16, side=24)
SAM_B = SamConfig(width=768, depth=12, heads=12, mlp_width=3072, patch=16, side=64, norm_after=False)

FAMILY = Family(
    name="deepseek_vl",
    reads=("multi_modality", "deepseek_vl", "deepseek_vl_hybrid"),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    layout=layout,
    portable=portable,
    sizes={
        "1.3b": _size(SIGLIP_L, None, _text(2048, 24, 16, 5632)),
        "7b": _size(SIGLIP_L, SAM_B, _text(4096, 30, 32, 11008)),
        "tiny": _size(
            PlainConfig(width=32, depth=2, heads=2, mlp_width=128, patch=4, side=24),
            SamConfig(
                width=36,
                depth=3,
                heads=3,
                mlp_width=144,
                patch=8,
                side=18,
                norm_after=False,
                full=(1,),
                neck=8,
                down=(16, 32),
            ),
            _text(64, 3, 4, 96, vocab=640, context=4096),
        ),
        "tiny_siglip": _size(
            PlainConfig(width=40, depth=3, heads=4, mlp_width=160, patch=8, side=6),
            None,
            _text(64, 2, 4, 96, vocab=640, context=4096),
        ),
    },
)
