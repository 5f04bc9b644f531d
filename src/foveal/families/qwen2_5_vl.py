"""Qwen2.5-VL (Bai et al. 2025): windowed tower, time positions in seconds, boxes in pixels as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.core.box import Space
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.families.qwen2_text import check_heads, flat_decoder, read_decoder
from foveal.language.config import DecoderConfig
from foveal.processing.chat import ChatML
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.native import NativeSize
from foveal.processing.patches import CLIP_COLOURS
from foveal.processing.positions import TimedMRope
from foveal.processing.processor import Processing
from foveal.processing.resize import PatchGrid
from foveal.processing.sampling import Frames
from foveal.vision.config import WindowConfig

if TYPE_CHECKING:
    from foveal.families.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Qwen2.5-VL model; `tokens_per_second` is the pace of a video's time positions."""

    vision: WindowConfig
    language: DecoderConfig
    tokens_per_second: int = 2

    def __post_init__(self) -> None:
        check_heads(self.language)


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in the released flat form or in the nested form that transformers 5 writes."""
    top = Reader(published, "config.json")
    language = read_decoder(top)
    seen = top.need("vision_config")
    seen.require("hidden_act", "silu")
    seen.require("out_hidden_size", language.width)
    patch = seen.integer("patch_size", 14)
    seen.require("spatial_patch_size", patch)
    turns = seen.section("rope_parameters") or Reader({}, "rope")
    turns.require("rope_type", "axial", "default")
    channels = seen.integer("in_chans", 3)
    seen.require("in_channels", channels)
    vision = WindowConfig(
        width=seen.integer("hidden_size"),
        depth=seen.integer("depth", 32),
        heads=seen.integer("num_heads", 16),
        mlp_width=seen.integer("intermediate_size", 3420),
        patch=patch,
        merge=seen.integer("spatial_merge_size", 2),
        temporal=seen.integer("temporal_patch_size", 2),
        channels=channels,
        theta=turns.number("rope_theta", 10000.0),
        window_px=seen.integer("window_size", 112),
        full=seen.integers("fullatt_block_indexes", (7, 15, 23, 31)),
    )
    config = Config(vision=vision, language=language, tokens_per_second=seen.integer("tokens_per_second", 4))
    for part in (top, seen, turns):
        part.finish()
    return config


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the flat form of the release, which every reader of Qwen2.5-VL understands."""
    vision, language = config.vision, config.language
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **flat_decoder(language),
        "vision_config": {
            "depth": vision.depth,
            "hidden_act": "silu",
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_heads": vision.heads,
            "in_chans": vision.channels,
            "out_hidden_size": language.width,
            "patch_size": vision.patch,
            "spatial_patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
            "tokens_per_second": config.tokens_per_second,
            "window_size": vision.window_px,
            "fullatt_block_indexes": list(vision.full),
        },
    }


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.adapter.merger import Merger
    from foveal.families.qwen2_5_vl_network import WindowedVLM
    from foveal.language.decoder import Decoder
    from foveal.nn.norm import RMSNorm
    from foveal.vision.windows import WindowTower

    vision, language = config.vision, config.language
    return WindowedVLM(
        vision=WindowTower(vision),
        adapter=Merger(vision.width, language.width, vision.merge, norm=RMSNorm),
        language=Decoder(language),
    )


def processing(config: Config) -> Processing:
    vision = config.vision
    return Processing(
        vision=NativeSize(
            resize=PatchGrid(patch=vision.patch, merge=vision.merge, temporal=vision.temporal),
            normalize=CLIP_COLOURS,
            video=Frames(),
            makers=("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor", "Qwen2_5_VLProcessor"),
        ),
        chat=ChatML(default_system="You are a helpful assistant."),
        boxes=JsonBoxes(space=Space.PROCESSED_PX),
        positions=TimedMRope(tokens_per_second=config.tokens_per_second, temporal=vision.temporal),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns."""
    vision, language = config.vision, config.language
    joined = vision.width * vision.merge**2
    adapter = vision.width + (joined + 1) * joined + (joined + 1) * language.width
    return {"vision": vision.parameters, "adapter": adapter, "language": language.parameters}


def _size(
    width: int, depth: int, heads: int, kv_heads: int, mlp_width: int, *, vision_mlp: int, vocab: int = 152064,
    tied: bool = False,
) -> Config:  # fmt: skip
    return Config(
        vision=WindowConfig(width=1280, depth=32, heads=16, mlp_width=vision_mlp),
        language=DecoderConfig(
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=128,
            mlp_width=mlp_width,
            vocab=vocab,
            tied=tied,
            context=128000,
        ),
    )


FAMILY = Family(
    name="qwen2_5_vl",
    reads=("qwen2_5_vl",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    sizes={
        "3b": _size(2048, 36, 16, 2, 11008, vision_mlp=3420, vocab=151936, tied=True),
        "7b": _size(3584, 28, 28, 4, 18944, vision_mlp=3420),
        "32b": _size(5120, 64, 40, 8, 27648, vision_mlp=3456),
        "72b": _size(8192, 80, 64, 8, 29568, vision_mlp=3456),
        "tiny": Config(
            vision=WindowConfig(width=32, depth=3, heads=2, mlp_width=48, full=(1,)),
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
