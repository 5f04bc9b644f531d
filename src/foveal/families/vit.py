"""ViT (Dosovitskiy et al. 2021): image classification by a transformer over patches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.core.errors import ConfigError
from foveal.families.base import Family
from foveal.families.published import Reader
from foveal.processing.patches import HALF
from foveal.processing.pictures import PictureProcessing
from foveal.processing.square_files import PublishedSquare
from foveal.vision.config import PlainConfig

if TYPE_CHECKING:
    from foveal.vision.classifier import ImageClassifier

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
"""Published names of activations, and ours. The first that means one of ours is the one that is written."""

POSITIONS = "Transformer.posembed_input.pos_embedding"
"""The position table in the authors' files."""

CLASSIFIER, BARE = "ViTForImageClassification", "ViTModel"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a ViT.

    Attributes:
        vision: the tower.
        image_px: side of the pictures whose patches the position table counts.
        labels: names of the classes in order; none for a tower without a head, which has a pooler instead.
    """

    vision: PlainConfig
    image_px: int
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image_px // self.vision.patch != self.vision.side:
            raise ConfigError(
                f"pictures of {self.image_px} px in patches of {self.vision.patch} px do not make {self.vision.side} "
                "patches a side."
            )

    @property
    def pooler(self) -> bool:
        return not self.labels


def from_published(published: Mapping[str, Any]) -> Config:
    """Reads config.json of `ViTForImageClassification`, or of the bare `ViTModel`."""
    top = Reader(published, "config.json")
    made = top.get("architectures", None) or [CLASSIFIER]
    if made not in ([CLASSIFIER], [BARE]):
        raise ConfigError(f"config.json: architectures is {made!r}; this family computes {CLASSIFIER} and {BARE}.")
    labels = _labels(top) if made == [CLASSIFIER] else ()
    width = top.integer("hidden_size", 768)
    image_px, patch = top.integer("image_size", 224), top.integer("patch_size", 16)
    act = top.word("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        top.require("hidden_act", *ACTIVATIONS)
    top.require("qkv_bias", True)
    if not labels:
        top.require("pooler_output_size", width, None)
        top.require("pooler_act", "tanh")
    for key in ("attention_probs_dropout_prob", "hidden_dropout_prob", "encoder_stride"):
        top.get(key, None)  # of training, and of a decoder that is not here
    for key in ("pooler_output_size", "pooler_act"):
        top.get(key, None)
    config = Config(
        vision=PlainConfig(
            width=width,
            depth=top.integer("num_hidden_layers", 12),
            heads=top.integer("num_attention_heads", 12),
            mlp_width=top.integer("intermediate_size", 3072),
            patch=patch,
            side=image_px // patch,
            channels=top.integer("num_channels", 3),
            eps=top.number("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[act],
            class_token=True,
        ),
        image_px=image_px,
        labels=labels,
    )
    top.finish()
    return config


def _labels(top: Reader) -> tuple[str, ...]:
    """Names of the classes; numbers where the file only says how many there are (2 when it says nothing)."""
    named = top.get("id2label", None)
    if named is None:
        return tuple(f"LABEL_{number}" for number in range(top.integer("num_labels", 2)))
    try:
        by_number = {int(number): str(name) for number, name in dict(named).items()}
    except (TypeError, ValueError):
        raise ConfigError(f"config.json: id2label is {named!r}; an object of number and name is expected.") from None
    if not by_number or sorted(by_number) != list(range(len(by_number))):
        raise ConfigError(f"config.json: id2label has {len(by_number)} names, which are not numbered from 0 on.")
    if top.get("num_labels", len(by_number)) != len(by_number):
        raise ConfigError(f"config.json: id2label has {len(by_number)} names; num_labels says otherwise.")
    return tuple(by_number[number] for number in sorted(by_number))


def guess(layout: str | None, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The configuration of an `.npz` file of the authors, with exact GELU and eps 1e-12 as in the published conversion.

    Classes get numbers for names. Raises `ConfigError` for a model that has no published form.
    """
    if layout != "big_vision":
        raise ConfigError("the weights say too little of their model; put its config.json beside them.")
    for name, why in (("cls", "pools without a class token"), (POSITIONS, "has no learned positions")):
        if name not in shapes:
            raise ConfigError(f"the model {why} (no {name}), which no published layout of ViT has.")
    patch, _, channels, width = shapes["embedding.kernel"]
    side = math.isqrt(shapes[POSITIONS][1])
    bare = "pre_logits.kernel" in shapes
    if not bare and "head.bias" not in shapes:
        raise ConfigError("the model has neither a head nor pre_logits; a published ViT has one of them.")
    first = "Transformer.encoderblock_0."
    return Config(
        vision=PlainConfig(
            width=width,
            depth=sum(name.endswith(".LayerNorm_0.bias") for name in shapes),
            heads=shapes[first + "MultiHeadDotProductAttention_0.query.bias"][0],
            mlp_width=shapes[first + "MlpBlock_0.Dense_0.bias"][0],
            patch=patch,
            side=side,
            channels=channels,
            eps=1e-12,
            class_token=True,
        ),
        image_px=side * patch,
        labels=() if bare else tuple(f"LABEL_{number}" for number in range(shapes["head.bias"][0])),
    )


def to_published(config: Config) -> dict[str, Any]:
    """config.json as the released checkpoints have it."""
    vision = config.vision
    act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == vision.activation)
    published = {
        "architectures": [CLASSIFIER if config.labels else BARE],
        "model_type": "vit",
        "attention_probs_dropout_prob": 0.0,
        "encoder_stride": vision.patch,
        "hidden_act": act,
        "hidden_dropout_prob": 0.0,
        "hidden_size": vision.width,
        "image_size": config.image_px,
        "initializer_range": 0.02,
        "intermediate_size": vision.mlp_width,
        "layer_norm_eps": vision.eps,
        "num_attention_heads": vision.heads,
        "num_channels": vision.channels,
        "num_hidden_layers": vision.depth,
        "patch_size": vision.patch,
        "qkv_bias": True,
    }
    if config.labels:
        published["id2label"] = {str(number): label for number, label in enumerate(config.labels)}
        published["label2id"] = {label: number for number, label in enumerate(config.labels)}
    return published


def build(config: Config) -> "ImageClassifier":
    """The network; torch comes in here, so that reading a configuration does without."""
    from foveal.vision.classifier import ImageClassifier

    return ImageClassifier(config.vision, len(config.labels), pooler=config.pooler)


def processing(config: Config) -> PictureProcessing:
    """Pictures are stretched to a square (bilinear), values from -1 to 1."""
    return PictureProcessing(
        vision=PublishedSquare(
            side_px=config.image_px,
            patch=config.vision.patch,
            normalize=HALF,
            resample=2,
            makers=("ViTImageProcessor", ""),
        )
    )


def parameters(config: Config) -> dict[str, int]:
    """Numbers that each part learns."""
    width = config.vision.width
    head = {"head": (width + 1) * len(config.labels)} if config.labels else {"pooler": (width + 1) * width}
    return {"vision": config.vision.parameters, **head}


def _size(width: int, depth: int, heads: int, patch: int, image_px: int, labels: int = 0, *, mlp: int = 4) -> Config:
    return Config(
        vision=PlainConfig(
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=mlp * width,
            patch=patch,
            side=image_px // patch,
            eps=1e-12,
            class_token=True,
        ),
        image_px=image_px,
        labels=tuple(f"LABEL_{number}" for number in range(labels)),
    )


FAMILY = Family(
    name="vit",
    reads=("vit",),
    config=Config,
    from_published=from_published,
    to_published=to_published,
    build=build,
    processing=processing,
    parameters=parameters,
    context=lambda _: 0,
    layout=lambda config: None if config.labels else "bare",
    guess=guess,
    # Table 1 of the paper. Names of classes stand in a checkpoint's config.json; these sizes only count them.
    sizes={
        "base-patch16-224": _size(768, 12, 12, 16, 224, 1000),
        "base-patch16-384": _size(768, 12, 12, 16, 384, 1000),
        "base-patch32-384": _size(768, 12, 12, 32, 384, 1000),
        "large-patch16-224": _size(1024, 24, 16, 16, 224, 1000),
        "large-patch16-384": _size(1024, 24, 16, 16, 384, 1000),
        "large-patch32-384": _size(1024, 24, 16, 32, 384, 1000),
        "base-patch16-224-in21k": _size(768, 12, 12, 16, 224),
        "base-patch32-224-in21k": _size(768, 12, 12, 32, 224),
        "large-patch16-224-in21k": _size(1024, 24, 16, 16, 224),
        "large-patch32-224-in21k": _size(1024, 24, 16, 32, 224),
        "huge-patch14-224-in21k": _size(1280, 32, 16, 14, 224),
        "tiny": _size(32, 2, 2, 8, 32, 5, mlp=2),
    },
)
