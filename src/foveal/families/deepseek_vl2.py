"""DeepSeek-VL2 (Wu et al. 2024): pictures as tiles, latent attention, mixtures of experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.language.expert_config import ExpertDecoderConfig, LatentSizes, Mixture, Yarn
from foveal.nn.routing import Routing
from foveal.processing.colon_chat import ColonChat
from foveal.processing.det_boxes import DetBoxes
from foveal.processing.patches import HALF
from foveal.processing.positions import Plain
from foveal.processing.processor import Processing
from foveal.processing.published import read_tokenizer
from foveal.processing.tiles import Size, Tiles, pairs
from foveal.vision.config import PlainConfig

if TYPE_CHECKING:
    from foveal.families.vlm import VLM

RATIO = 3.7362
"""Width of SigLIP-SO400M's MLP over its width, as released; the product is rounded down."""

MOST_LINEARS = 4
"""The name map has so many linear layers of the projector."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a DeepSeek-VL2 model.

    Attributes:
        candidates: (width, height) in pixels of the canvases that are cut into tiles; the first is one tile.
        join: patches along the side of a token.
        linears: linear layers of the projector.
        widen: width of the projector's hidden layers over the language model's.
        global_first: the global view stands before the tiles.
        balance: weight of the loss that keeps experts evenly used (`aux_loss_alpha`).
        begin, end: ids of the tokens at the start of a text and after an answer, as config.json states them.
    """

    vision: PlainConfig
    language: ExpertDecoderConfig
    candidates: tuple[Size, ...]
    join: int = 2
    linears: int = 2
    widen: int = 1
    global_first: bool = True
    balance: float = 0.001
    begin: int = 0
    end: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.linears <= MOST_LINEARS:
            raise ConfigError(
                f"the projector has {self.linears} linear layers; this family computes 2 to {MOST_LINEARS}."
            )

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels."""
        return self.candidates[0][0]


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json of the release. What it leaves out has the defaults of the released code."""
    top = Reader(published, "config.json")
    top.require("tile_tag", "2D")
    where = top.get("global_view_pos", "head")
    if where not in ("head", "tail"):
        raise ConfigError(f"config.json: global_view_pos is {where!r}; expected 'head' or 'tail'.")
    seen, said = top.need("vision_config"), top.need("language_config")
    joined = top.section("projector_config") or Reader({}, "config.json: projector_config")
    vision, tile_px = _vision(seen)
    language = _language(said)
    try:
        candidates = pairs(top.get("candidate_resolutions", [[tile_px, tile_px]]))
    except ValueError as error:
        raise ConfigError(f"config.json: {error}") from None
    if candidates[0] != (tile_px, tile_px):
        raise ConfigError(
            f"config.json: the first candidate resolution is {list(candidates[0])}, but the tower sees {tile_px} px; "
            "make them agree."
        )
    joined.require("projector_type", "downsample_mlp_gelu")
    joined.require("token_pooling", False)
    for key, default, wanted in (("input_dim", 1152, vision.width), ("n_embed", 2048, language.width)):
        if joined.get(key, default) != wanted:
            raise ConfigError(f"{joined.where}: {key} is {joined.get(key, default)}; {wanted} is expected.")
    config = Config(
        vision=vision,
        language=language,
        candidates=candidates,
        join=joined.integer("downsample_ratio", 2),
        linears=joined.integer("depth", 2),
        widen=joined.integer("mlp_ratio", 1),
        global_first=where == "head",
        balance=said.number("aux_loss_alpha", 0.001, zero=True),
        begin=said.integer("bos_token_id", 100000, zero=True),
        end=said.integer("eos_token_id", 100001, zero=True),
    )
    for part in (top, seen, said, joined):
        part.finish()
    return config


def _vision(seen: Reader) -> tuple[PlainConfig, int]:
    """The tower's sizes, and the side of its pictures in pixels."""
    seen.get("model_name", None)
    for key, value in (
        ("global_pool", "map"),
        ("ignore_head", True),
        ("class_token", False),
        ("num_classes", 0),
        ("use_checkpoint", False),
    ):
        seen.require(key, value)
    for key in ("weight_init", "deterministic", "num_recomputing_layers"):  # training and tools only
        seen.get(key, None)
    width, patch, image = seen.integer("width", 1024), seen.integer("patch_size", 16), seen.integer("image_size", 384)
    vision = PlainConfig(
        width=width,
        depth=seen.integer("layers", 24),
        heads=seen.integer("heads", 16),
        mlp_width=int(width * seen.number("mlp_ratio", 4.0)),
        patch=patch,
        side=image // patch,
        activation="gelu_tanh",
    )
    return vision, image


def _language(said: Reader) -> ExpertDecoderConfig:
    said.require("hidden_act", "silu")
    said.require("attention_bias", False)
    said.require("lm_head", True)
    said.require("rm_head", False)
    for key in ("pretraining_tp", "ep_size", "seq_aux"):  # training and tools only
        said.get(key, None)
    heads = said.integer("num_attention_heads", 32)
    keys = said.get("num_key_value_heads", 32)
    own = {
        key: said.get(key, default)
        for key, default in (
            ("kv_lora_rank", 512),
            ("q_lora_rank", 1536),
            ("qk_nope_head_dim", 128),
            ("qk_rope_head_dim", 64),
            ("v_head_dim", 128),
        )
    }
    latent = None
    if said.get("use_mla", True):
        for key, size in own.items():
            if key != "q_lora_rank" or size is not None:
                said.integer(key, size)
        latent = LatentSizes(
            latent=own["kv_lora_rank"],
            query_latent=own["q_lora_rank"],
            plain=own["qk_nope_head_dim"],
            rotary=own["qk_rope_head_dim"],
            value=own["v_head_dim"],
        )
    return ExpertDecoderConfig(
        width=said.integer("hidden_size", 4096),
        depth=said.integer("num_hidden_layers", 30),
        heads=heads,
        kv_heads=heads if keys is None else said.integer("num_key_value_heads", 32),
        mlp_width=said.integer("intermediate_size", 11008),
        vocab=said.integer("vocab_size", 102400),
        latent=latent,
        yarn=_yarn(said.section("rope_scaling")),
        mixture=_mixture(said),
        eps=said.number("rms_norm_eps", 1e-6),
        theta=said.number("rope_theta", 10000.0),
        tied=said.flag("tie_word_embeddings", False),
        context=said.integer("max_position_embeddings", 2048),
    )


def _yarn(scaling: Reader | None) -> Yarn | None:
    if scaling is None:
        return None
    kind = scaling.get("type", scaling.get("rope_type", None))
    if kind != "yarn":
        raise ConfigError(f"{scaling.where}: type is {kind!r}; this family computes only 'yarn'.")
    yarn = Yarn(
        factor=scaling.number("factor", 1.0),
        trained=scaling.integer("original_max_position_embeddings", 4096),
        fast=scaling.number("beta_fast", 32.0),
        slow=scaling.number("beta_slow", 1.0),
        weight=scaling.number("mscale", 1.0),
        weight_all=scaling.number("mscale_all_dim", 0.0, zero=True),
    )
    scaling.finish()
    return yarn


def _mixture(said: Reader) -> Mixture | None:
    shared, first = said.get("n_shared_experts", None) or 0, said.get("first_k_dense_replace", 0)
    for key, value in (("n_shared_experts", shared), ("first_k_dense_replace", first)):
        if type(value) is not int or value < 0:
            raise ConfigError(f"{said.where}: {key} is {value!r}; a whole number is expected.")
    every = said.integer("moe_layer_freq", 1)
    width, chosen = said.integer("moe_intermediate_size", 1407), said.get("num_experts_per_tok", None)
    groups, kept = (1 if said.get(key, None) is None else said.integer(key) for key in ("n_group", "topk_group"))
    method, score = said.word("topk_method", "greedy"), said.word("scoring_func", "softmax")
    normalise, scale = said.flag("norm_topk_prob", False), said.number("routed_scaling_factor", 1.0)
    experts = said.get("n_routed_experts", None)
    if experts is None:
        return None
    routing = Routing(
        experts=said.integer("n_routed_experts"),
        chosen=said.integer("num_experts_per_tok"),
        method=method,
        score=score,
        groups=groups,
        kept_groups=kept,
        normalise=normalise and chosen > 1,
        scale=scale,
    )
    return Mixture(routing=routing, width=width, shared=shared, first=first, every=every)


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the official schema."""
    vision, language = config.vision, config.language
    exact = int(vision.width * RATIO) == vision.mlp_width
    return {
        "architectures": ["DeepseekVLV2ForCausalLM"],
        "model_type": "deepseek_vl_v2",
        "candidate_resolutions": [list(c) for c in config.candidates],
        "global_view_pos": "head" if config.global_first else "tail",
        "tile_tag": "2D",
        "vision_config": {
            "model_type": "vision",
            "model_name": "siglip_so400m_patch14_384",
            "image_size": config.tile_px,
            "patch_size": vision.patch,
            "width": vision.width,
            "layers": vision.depth,
            "heads": vision.heads,
            # Readers round the product down; half a unit more keeps it exact.
            "mlp_ratio": RATIO if exact else (vision.mlp_width + 0.5) / vision.width,
        },
        "projector_config": {
            "model_type": "mlp_projector",
            "projector_type": "downsample_mlp_gelu",
            "input_dim": vision.width,
            "n_embed": language.width,
            "depth": config.linears,
            "mlp_ratio": config.widen,
            "downsample_ratio": config.join,
        },
        "language_config": _published_language(config),
    }


def _published_language(config: Config) -> dict[str, Any]:
    language = config.language
    latent, mixture, yarn = language.latent, language.mixture, language.yarn
    stated: dict[str, Any] = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "bos_token_id": config.begin,
        "eos_token_id": config.end,
        "hidden_act": "silu",
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "lm_head": True,
        "rm_head": False,
        "max_position_embeddings": language.context,
        "num_attention_heads": language.heads,
        "num_hidden_layers": language.depth,
        "num_key_value_heads": language.kv_heads,
        "rms_norm_eps": language.eps,
        "rope_theta": language.theta,
        "tie_word_embeddings": language.tied,
        "vocab_size": language.vocab,
        "use_mla": latent is not None,
        "kv_lora_rank": latent.latent if latent else None,
        "q_lora_rank": latent.query_latent if latent else None,
        "qk_nope_head_dim": latent.plain if latent else 0,
        "qk_rope_head_dim": latent.rotary if latent else 0,
        "v_head_dim": latent.value if latent else 0,
        "aux_loss_alpha": config.balance,
    }
    if yarn is not None:
        stated["rope_scaling"] = {
            "type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.trained,
            "beta_fast": yarn.fast,
            "beta_slow": yarn.slow,
            "mscale": yarn.weight,
            "mscale_all_dim": yarn.weight_all,
        }
    if mixture is not None:
        routing = mixture.routing
        stated |= {
            "n_routed_experts": routing.experts,
            "n_shared_experts": mixture.shared or None,
            "num_experts_per_tok": routing.chosen,
            "moe_intermediate_size": mixture.width,
            "first_k_dense_replace": mixture.first,
            "moe_layer_freq": mixture.every,
            "topk_method": routing.method,
            "scoring_func": routing.score,
            "n_group": routing.groups,
            "topk_group": routing.kept_groups,
            "norm_topk_prob": routing.normalise,
            "routed_scaling_factor": routing.scale,
        }
    return stated


def build(config: Config) -> "VLM":
    """The network; torch comes in here, so that reading a configuration does without."""
    from torch import nn

    from foveal.adapter.tiles import TileAdapter
    from foveal.families.deepseek_vl2_network import TiledVLM
    from foveal.language.attention import Attention
    from foveal.language.decoder import Decoder, rotary
    from foveal.language.latent_attention import LatentAttention, latent_rotary
    from foveal.nn.mlp import GatedMLP
    from foveal.nn.moe import MoE
    from foveal.vision.tile_tower import TileTower

    def mlp(sizes: ExpertDecoderConfig, layer: int) -> nn.Module:
        mixture = sizes.mixture
        if mixture is None or not sizes.mixed(layer):
            return GatedMLP(sizes.width, sizes.mlp_width)
        return MoE(sizes.width, mixture.width, mixture.routing, shared_width=mixture.shared * mixture.width)

    vision, language = config.vision, config.language
    parts: dict[str, Any] = {"attention": LatentAttention, "rotary": latent_rotary}
    if language.latent is None:
        plain = language.ordinary
        parts = {"attention": lambda _, layer: Attention(plain, layer), "rotary": lambda _, at: rotary(plain, at)}
    return TiledVLM(
        vision=TileTower(vision),
        adapter=TileAdapter(
            vision.width,
            language.width,
            language.width * config.widen,
            depth=config.linears,
            join=config.join,
            global_first=config.global_first,
        ),
        language=Decoder(language, mlp=mlp, **parts),
    )


def processing(config: Config) -> Processing:
    chat, boxes = ColonChat(), DetBoxes()
    # In the order in which the released processor adds what a vocabulary lacks.
    needed = ("<｜▁pad▁｜>", chat.image, *boxes.specials, chat.grounding, chat.user, chat.assistant)
    return Processing(
        vision=Tiles(candidates=config.candidates, patch=config.vision.patch, join=config.join, normalize=HALF),
        chat=chat,
        boxes=boxes,
        positions=Plain(),
        tokenizer=partial(read_tokenizer, allow=("add_bos_token",), needed=needed),
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns; the tower's idle pooling head counts, as in the releases."""
    vision, language = config.vision, config.language
    d, f = vision.width, vision.mlp_width
    pool = d + (d + 1) * 4 * d + 2 * d + (d + 1) * f + (f + 1) * d
    hidden = language.width * config.widen
    widths = [d * config.join**2, *[hidden] * (config.linears - 1), language.width]
    linears = sum((a + 1) * b for a, b in pairwise(widths))
    return {
        "vision": vision.parameters + pool,
        "adapter": linears + 2 * language.width,
        "language": language.parameters,
    }


TOWER = PlainConfig(
    width=1152, depth=27, heads=16, mlp_width=int(1152 * RATIO), patch=14, side=27, activation="gelu_tanh"
)

# All with at most nine tiles of 384 pixels, in the order of the releases.
_TILES: tuple[Size, ...] = (
    (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6), (6, 1),
    (2, 3), (3, 2), (1, 7), (7, 1), (1, 8), (8, 1), (2, 4), (4, 2), (1, 9), (9, 1), (3, 3),
)  # fmt: skip


def _candidates(side: int) -> tuple[Size, ...]:
    return tuple((across * side, down * side) for across, down in _TILES)


_LATENT = LatentSizes(latent=512, query_latent=None, plain=128, rotary=64, value=128)


def _size(
    width: int, depth: int, heads: int, mlp_width: int, vocab: int, latent: LatentSizes | None, mixture: Mixture
) -> Config:
    language = ExpertDecoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=heads,
        mlp_width=mlp_width,
        vocab=vocab,
        latent=latent,
        mixture=mixture,
    )
    return Config(vision=TOWER, language=language, candidates=_candidates(384))


FAMILY = Family(
    name="deepseek_vl2",
    reads=("deepseek_vl_v2",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda config: config.language.context,
    sizes={
        "vl2-tiny": _size(
            1280, 12, 10, 6848, 129280, None,
            Mixture(routing=Routing(experts=64, chosen=6), width=896, shared=2, first=1),
        ),
        "vl2-small": _size(
            2048, 27, 16, 10944, 102400, _LATENT,
            Mixture(routing=Routing(experts=64, chosen=6), width=1408, shared=2, first=1),
        ),
        "vl2": _size(
            2560, 30, 32, 12288, 129280, _LATENT,
            Mixture(
                routing=Routing(
                    experts=72, chosen=6, method="noaux_tc", score="sigmoid", normalise=True, scale=2.0
                ),
                width=1536, shared=2, first=1,
            ),
        ),
        "tiny": Config(
            vision=PlainConfig(width=32, depth=2, heads=2, mlp_width=96, patch=14, side=3, activation="gelu_tanh"),
            language=ExpertDecoderConfig(
                width=48, depth=3, heads=4, kv_heads=4, mlp_width=64, vocab=640,
                latent=LatentSizes(latent=16, query_latent=None, plain=8, rotary=4, value=6),
                mixture=Mixture(routing=Routing(experts=4, chosen=2), width=24, shared=1, first=1),
            ),
            candidates=_candidates(44),
        ),
    },
)  # fmt: skip
