"""DeepSeek-VL (Lu et al. 2024): SigLIP alone (1.3B), or SigLIP and SAM side by side (7B), before a Llama decoder.

Two layouts are read and written: DeepSeek's own (model_type `multi_modality`) and that of transformers (`deepseek_vl`,
`deepseek_vl_hybrid`). A model keeps the layout it was read in.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.deepseek_vl_config import Config, from_transformers, to_transformers
from foveal.families.deepseek_vl_original import from_original, to_original
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
from foveal.vision.hybrid_config import SamConfig, TowersConfig, latent_pool

if TYPE_CHECKING:
    from foveal.families.vlm import VLM


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json in either layout."""
    top = Reader(published, "config.json")
    if published.get("model_type") == "multi_modality":
        return from_original(top)
    return from_transformers(top)


def to_published(config: Config) -> dict[str, Any]:
    """config.json in the layout of the configuration."""
    return to_original(config) if config.layout == "original" else to_transformers(config)


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
