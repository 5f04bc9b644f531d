"""config.json of DeepSeek-VL in DeepSeek's own layout (model_type `multi_modality`)."""

from collections.abc import Mapping
from typing import Any

from foveal.core.errors import ConfigError, neighbours
from foveal.families.deepseek_vl_config import Config, read_decoder, whole_side, written_decoder
from foveal.families.published import Reader
from foveal.processing.patches import Normalize
from foveal.vision.config import PlainConfig
from foveal.vision.hybrid_config import SamConfig, TowersConfig, latent_pool

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


def from_original(top: Reader) -> Config:
    """Reads config.json of model_type `multi_modality`; `ConfigError` for what is not computed."""
    for key in sorted(k for k in top.values if k.startswith("gen_")):
        raise ConfigError(f"{top.where}: {key!r}: this is a model that makes pictures (Janus); DeepSeek-VL only sees.")
    language = read_decoder(top.need("language_config"), tied=None)
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
    name = part.word("model_name", default)
    keys = known[default]
    stated = {key: part.get(key, None) for key in keys}
    if name not in known and None in stated.values():
        missing = [key for key, value in stated.items() if value is None]
        raise ConfigError(
            f"{part.where}: unknown model_name {name!r}; {neighbours(str(name), known)} DeepSeek's code keeps the "
            f"sizes of towers under such names; for another tower state them beside it: {', '.join(missing)}."
        )
    sizes = {key: known[name][key] if value is None else value for key, value in stated.items()}
    for key, value in sizes.items():
        several = isinstance(keys[key], list)
        numbers = value if several and isinstance(value, list) else [] if several else [value]
        enough = len(numbers) == 2 if key == "downsample_channels" else bool(numbers)
        kinds = (int, float) if key == "mlp_ratio" else (int,)
        least = 0 if key == "global_attn_indexes" else 1
        if not enough or any(isinstance(n, bool) or not isinstance(n, kinds) or n < least for n in numbers):
            raise ConfigError(f"{part.where}: {key} is {value!r}; expected something like {keys[key]!r}.")
    return sizes


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
        "side": whole_side(part, side_px, patch),
    }


def _colours(part: Reader) -> Normalize | None:
    mean, std = part.get("pixel_mean", None), part.get("pixel_std", None)
    if mean is None or std is None:
        return None
    try:
        (red, green, blue), (wide, wider, widest) = mean, std
        return Normalize(mean=(float(red), float(green), float(blue)), std=(float(wide), float(wider), float(widest)))
    except (TypeError, ValueError):
        raise ConfigError(
            f"{part.where}: pixel_mean {mean!r} and pixel_std {std!r}; expected three numbers each."
        ) from None


def to_original(config: Config) -> dict[str, Any]:
    """config.json as DeepSeek's code reads it; `ConfigError` for what it cannot state."""
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
        "language_config": written_decoder(language),
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
