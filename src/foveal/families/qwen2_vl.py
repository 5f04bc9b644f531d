"""Qwen2-VL (Wang et al. 2024): native-resolution tower with 2-D rotary positions, M-RoPE, images and video."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.families.qwen2_text import check_heads, flat_decoder, read_decoder
from foveal.language.config import DecoderConfig
from foveal.processing.chat import ChatML
from foveal.processing.grounding import TaggedBoxes
from foveal.processing.native import NativeSize
from foveal.processing.patches import CLIP_COLOURS
from foveal.processing.positions import MRope
from foveal.processing.processor import Processing
from foveal.processing.resize import PatchGrid
from foveal.processing.video import Frames
from foveal.vision.config import VisionConfig

if TYPE_CHECKING:
    from foveal.families.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Qwen2-VL model."""

    vision: VisionConfig
    language: DecoderConfig

    def __post_init__(self) -> None:
        # The published layout states neither head size nor tower MLP width: it derives both.
        check_heads(self.language)
        seen = self.vision
        if seen.mlp_width % seen.width:
            raise ConfigError(f"vision MLP width {seen.mlp_width} is no whole multiple of the width {seen.width}.")


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in the released flat form or in the nested form that transformers 5 writes."""
    top = Reader(published, "config.json")
    language = read_decoder(top)
    seen = top.need("vision_config")
    seen.require("hidden_act", "quick_gelu")
    seen.require("hidden_size", language.width)
    patch = seen.integer("patch_size", 14)
    seen.require("spatial_patch_size", patch)
    turns = seen.section("rope_parameters") or Reader({}, "rope")
    turns.require("rope_type", "axial", "default")
    channels = seen.integer("in_chans", 3)
    seen.require("in_channels", channels)
    vision_width = seen.integer("embed_dim")
    vision = VisionConfig(
        width=vision_width,
        depth=seen.integer("depth"),
        heads=seen.integer("num_heads"),
        mlp_width=int(vision_width * seen.number("mlp_ratio", 4.0)),
        patch=patch,
        merge=seen.integer("spatial_merge_size", 2),
        temporal=seen.integer("temporal_patch_size", 2),
        channels=channels,
        theta=turns.number("rope_theta", 10000.0),
    )
    for part in (top, seen, turns):
        part.finish()
    return Config(vision=vision, language=language)


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the flat form of the release, which every reader of Qwen2-VL understands."""
    vision, language = config.vision, config.language
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **flat_decoder(language),
        "vision_config": {
            "depth": vision.depth,
            "embed_dim": vision.width,
            "hidden_size": language.width,
            "mlp_ratio": vision.mlp_width // vision.width,
            "num_heads": vision.heads,
            "in_chans": vision.channels,
            "patch_size": vision.patch,
            "spatial_patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
        },
    }


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.adapter.merger import Merger
    from foveal.families.vlm import VLM
    from foveal.language.decoder import Decoder
    from foveal.vision.vit import VisionTower

    vision, language = config.vision, config.language
    return VLM(
        vision=VisionTower(vision),
        adapter=Merger(vision.width, language.width, vision.merge),
        language=Decoder(language),
    )


def processing(config: Config) -> Processing:
    vision = config.vision
    return Processing(
        vision=NativeSize(
            resize=PatchGrid(patch=vision.patch, merge=vision.merge, temporal=vision.temporal),
            normalize=CLIP_COLOURS,
            video=Frames(),
        ),
        chat=ChatML(default_system="You are a helpful assistant."),
        boxes=TaggedBoxes(),
        positions=MRope(),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns."""
    vision, language = config.vision, config.language
    joined = vision.width * vision.merge**2
    adapter = 2 * vision.width + (joined + 1) * joined + (joined + 1) * language.width
    return {"vision": vision.parameters, "adapter": adapter, "language": language.parameters}


TOWER = VisionConfig(width=1280, depth=32, heads=16, mlp_width=5120)


def _size(width: int, depth: int, heads: int, kv_heads: int, mlp_width: int, vocab: int, *, tied: bool) -> Config:
    return Config(
        vision=TOWER,
        language=DecoderConfig(
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=128,
            mlp_width=mlp_width,
            vocab=vocab,
            tied=tied,
        ),
    )


FAMILY = Family(
    name="qwen2_vl",
    reads=("qwen2_vl",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    sizes={
        "2b": _size(1536, 28, 12, 2, 8960, 151936, tied=True),
        "7b": _size(3584, 28, 28, 4, 18944, 152064, tied=False),
        "72b": _size(8192, 80, 64, 8, 29568, 152064, tied=False),
        "tiny": Config(
            vision=VisionConfig(width=32, depth=2, heads=2, mlp_width=64),
            language=DecoderConfig(
                width=64,
                depth=3,
                heads=4,
                kv_heads=2,
                head_dim=16,
                mlp_width=96,
                vocab=640,
                section=(2, 3, 3),
            ),
        ),
    },
)
