"""Qwen3-VL, dense and with experts: DeepStack, interleaved M-RoPE, times as text, boxes in thousandths as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foveal.core.box import Space
from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.normed_config import NormedDecoderConfig
from foveal.nn.routing import Routing
from foveal.processing.chat import ChatML
from foveal.processing.json_boxes import JsonBoxes
from foveal.processing.native import NativeSize
from foveal.processing.patches import HALF
from foveal.processing.positions import MRope
from foveal.processing.processor import Processing
from foveal.processing.resize import PatchGrid
from foveal.processing.sampling import Frames
from foveal.processing.stamps import TimeStamps
from foveal.vision.config import StackConfig

if TYPE_CHECKING:
    from foveal.families.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a Qwen3-VL model."""

    vision: StackConfig
    language: NormedDecoderConfig

    def __post_init__(self) -> None:
        if self.language.deep != len(self.vision.inner):
            raise ConfigError(f"{len(self.vision.inner)} inner blocks of the tower but {self.language.deep} additions.")


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in the released form or in that of transformers 5."""
    top = Reader(published, "config.json")
    text = top.need("text_config")
    text.require("hidden_act", "silu")
    text.require("attention_bias", False)
    rope = text.section("rope_scaling") or text.section("rope_parameters") or Reader({}, "rope")
    rope.require("rope_type", "default")
    rope.require("mrope_interleaved", True)
    width, heads = text.integer("hidden_size"), text.integer("num_attention_heads")
    experts: dict[str, Any] = {}
    if top.get("model_type", None) == "qwen3_vl_moe":
        text.require("norm_topk_prob", True)
        routing = Routing(
            experts=text.integer("num_experts" if "num_experts" in text.values else "num_local_experts"),
            chosen=text.integer("num_experts_per_tok"),
            normalise=True,
        )
        experts = {
            "routing": routing,
            "expert_width": text.integer("moe_intermediate_size"),
            "dense": text.integers("mlp_only_layers", ()),
            "every": text.integer("decoder_sparse_step", 1),
        }
    own_tie = text.flag("tie_word_embeddings", False)  # transformers 5 writes a default here that does not count
    language = NormedDecoderConfig(
        width=width,
        depth=text.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=text.integer("num_key_value_heads"),
        head_dim=text.integer("head_dim", width // heads),
        mlp_width=text.integer("intermediate_size"),
        vocab=text.integer("vocab_size"),
        eps=text.number("rms_norm_eps", 1e-6),
        theta=rope.number("rope_theta", text.number("rope_theta", 500_000.0)),
        section=rope.integers("mrope_section", (24, 20, 20)),
        tied=top.flag("tie_word_embeddings", own_tie),
        context=text.integer("max_position_embeddings"),
        **experts,
    )
    seen = top.need("vision_config")
    inner = seen.integers("deepstack_visual_indexes", (8, 16, 24))
    seen.require("hidden_act", "gelu_pytorch_tanh")
    seen.require("out_hidden_size", width)
    turns = seen.section("rope_parameters") or Reader({}, "rope")
    turns.require("rope_type", "axial", "default")
    positions = seen.integer("num_position_embeddings", 2304)
    side = round(positions**0.5)
    if side**2 != positions:
        raise ConfigError(f"config.json: num_position_embeddings is {positions}, which is no square.")
    vision = StackConfig(
        width=seen.integer("hidden_size"),
        depth=seen.integer("depth"),
        heads=seen.integer("num_heads"),
        mlp_width=seen.integer("intermediate_size"),
        patch=seen.integer("patch_size", 16),
        merge=seen.integer("spatial_merge_size", 2),
        temporal=seen.integer("temporal_patch_size", 2),
        channels=seen.integer("in_channels", 3),
        theta=turns.number("rope_theta", 10000.0),
        side=side,
        inner=inner,
    )
    for part in (top, rope, seen, turns):
        part.finish()
    text.finish(("output_router_logits", "router_aux_loss_coef"))
    return Config(vision=vision, language=replace(language, deep=len(inner)))


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the form of the release."""
    vision, language = config.vision, config.language
    routing, kind, name = language.routing, "qwen3_vl", "Qwen3VLForConditionalGeneration"
    experts: dict[str, Any] = {}
    if routing is not None:
        kind, name = "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"
        experts = {
            "decoder_sparse_step": language.every,
            "mlp_only_layers": list(language.dense),
            "moe_intermediate_size": language.expert_width,
            "norm_topk_prob": True,
            "num_experts": routing.experts,
            "num_experts_per_tok": routing.chosen,
        }
    return {
        "architectures": [name],
        "model_type": kind,
        "text_config": {
            "attention_bias": False,
            **experts,
            "head_dim": language.head_dim,
            "hidden_act": "silu",
            "hidden_size": language.width,
            "intermediate_size": language.mlp_width,
            "max_position_embeddings": language.context,
            "model_type": f"{kind}_text",
            "num_attention_heads": language.heads,
            "num_hidden_layers": language.depth,
            "num_key_value_heads": language.kv_heads,
            "rms_norm_eps": language.eps,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": list(language.section),
                "rope_type": "default",
            },
            "rope_theta": language.theta,
            "tie_word_embeddings": language.tied,
            "vocab_size": language.vocab,
        },
        "tie_word_embeddings": language.tied,
        "vision_config": {
            "deepstack_visual_indexes": list(vision.inner),
            "depth": vision.depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": vision.width,
            "in_channels": vision.channels,
            "intermediate_size": vision.mlp_width,
            "model_type": kind,
            "num_heads": vision.heads,
            "num_position_embeddings": vision.side**2,
            "out_hidden_size": language.width,
            "patch_size": vision.patch,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.temporal,
        },
    }


def layout(config: Config) -> str | None:
    """The layout that is saved: the official one.

    Where a tensor of all experts is square, transformers cannot see that the official one is transposed and reads it
    wrongly; then, as with no released size, its own layout.
    """
    language = config.language
    square = language.routing is not None and language.width in (language.expert_width, 2 * language.expert_width)
    return "transformers" if square else None


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.adapter.stacked import StackedMerger
    from foveal.families.qwen3_vl_network import StackedVLM, feed_forward, rotary
    from foveal.language.attention import NormedAttention
    from foveal.language.decoder import Decoder
    from foveal.vision.stack import StackTower

    vision, language = config.vision, config.language
    return StackedVLM(
        vision=StackTower(vision),
        adapter=StackedMerger(vision.width, language.width, vision.merge, len(vision.inner)),
        language=Decoder(language, attention=NormedAttention, mlp=feed_forward, rotary=rotary),
    )


def processing(config: Config) -> Processing:
    """How its media, chats and boxes are written."""
    vision = config.vision
    return Processing(
        vision=NativeSize(
            resize=PatchGrid(
                patch=vision.patch, merge=vision.merge, temporal=vision.temporal, min_px=65536, max_px=16777216
            ),
            normalize=HALF,
            video=Frames(frame_max_px=768 * 32 * 32, multiple=1, volume_px=(4096, 25165824)),
            makers=("Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor", "Qwen3VLProcessor"),
        ),
        chat=ChatML(default_system=None),
        boxes=JsonBoxes(space=Space.RELATIVE_1000),
        positions=MRope(),
        arrange=TimeStamps(temporal=vision.temporal),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns."""
    vision, language = config.vision, config.language
    joined = vision.width * vision.merge**2
    maps = (joined + 1) * joined + (joined + 1) * language.width
    adapter = 2 * vision.width + maps + len(vision.inner) * (2 * joined + maps)
    return {"vision": vision.parameters, "adapter": adapter, "language": language.parameters}


SMALL_TOWER = StackConfig(width=1024, depth=24, heads=16, mlp_width=4096, inner=(5, 11, 17))
TOWER = StackConfig(width=1152, depth=27, heads=16, mlp_width=4304)


def _size(
    tower: StackConfig, width: int, depth: int, heads: int, kv_heads: int, mlp_width: int, *, tied: bool = False,
    expert_width: int = 0,
) -> Config:  # fmt: skip
    return Config(
        vision=tower,
        language=NormedDecoderConfig(
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=128,
            mlp_width=mlp_width,
            vocab=151936,
            tied=tied,
            deep=len(tower.inner),
            routing=Routing(experts=128, chosen=8, normalise=True) if expert_width else None,
            expert_width=expert_width,
        ),
    )


def _tiny(**experts: Any) -> Config:
    return Config(
        vision=StackConfig(width=32, depth=3, heads=2, mlp_width=48, side=6, inner=(0, 1)),
        language=NormedDecoderConfig(
            width=64,
            depth=3,
            heads=4,
            kv_heads=2,
            head_dim=24,
            mlp_width=96,
            vocab=640,
            section=(4, 4, 4),
            context=32768,
            deep=2,
            **experts,
        ),
    )


FAMILY = Family(
    name="qwen3_vl",
    reads=("qwen3_vl", "qwen3_vl_moe"),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    layout=layout,
    sizes={
        "2b": _size(SMALL_TOWER, 2048, 28, 16, 8, 6144, tied=True),
        "4b": _size(SMALL_TOWER, 2560, 36, 32, 8, 9728, tied=True),
        "8b": _size(TOWER, 4096, 36, 32, 8, 12288),
        "32b": _size(TOWER, 5120, 64, 64, 8, 25600),
        "30b-a3b": _size(TOWER, 2048, 48, 32, 4, 6144, expert_width=768),
        "235b-a22b": _size(TOWER, 4096, 94, 64, 4, 12288, expert_width=1536),
        "tiny": _tiny(),
        "tiny-moe": _tiny(routing=Routing(experts=6, chosen=2, normalise=True), expert_width=20),
    },
)
