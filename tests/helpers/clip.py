"""Tiny random CLIP checkpoints: transformers' through real files, and originals under OpenAI's names."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foveal.processing.clip_tokens import BEGIN, END, WORD_END
from foveal.processing.tokens import BYTE_LETTERS

WORDS = (
    "a photo of a cat dog rabbit the red bicycle on the left it's we're they'll i'm don't person people animal "
    "painting picture drawing of the and in with two three big small house tree street"
).split()
CONTEXT = 24


@cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of CLIP's kind with merges learned from a few words: 512 byte pieces, merges, two marks."""
    letters = list(BYTE_LETTERS)
    pieces = [*letters, *(c + WORD_END for c in letters)]
    words = [[*word[:-1], word[-1] + WORD_END] for word in WORDS for _ in range(len(word))]
    merges: list[tuple[str, str]] = []
    while len(merges) < 96:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        pieces.append("".join(best))
        for word in words:
            index = 0
            while index < len(word) - 1:
                if (word[index], word[index + 1]) == best:
                    word[index : index + 2] = ["".join(best)]
                index += 1
    return {piece: number for number, piece in enumerate([*pieces, BEGIN, END])}, merges


def tokenizer() -> Any:
    """transformers' tokenizer over the tiny vocabulary."""
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=CONTEXT)


def image_processor(side_px: int) -> Any:
    """transformers' processor that does without torchvision."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": side_px}, crop_size={"height": side_px, "width": side_px})


def oracle(*, legacy_eos: bool = True, seed: int = 0, act: str = "quick_gelu", side_px: int = 32) -> Any:
    """A random `CLIPModel` whose every parameter is random, norms and biases too."""
    from transformers import CLIPConfig, CLIPModel

    vocab, _ = vocabulary()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(vocab),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "max_position_embeddings": CONTEXT,
            "hidden_act": act,
            "bos_token_id": vocab[BEGIN],
            "eos_token_id": 2 if legacy_eos else vocab[END],
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": side_px,
            "patch_size": 8,
            "hidden_act": act,
        },
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def write(model: Any, folder: Path) -> Path:
    """The model as transformers saves it, with tokenizer and processor."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    image_processor(model.config.vision_config.image_size).save_pretrained(folder)
    return folder


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' `CLIPModel` under the names, and in the shapes, of OpenAI's code."""
    found = {"logit_scale": state["logit_scale"]}
    found["text_projection"] = state["text_projection.weight"].T.contiguous()
    found["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    found["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    found["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    found["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    found["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    found["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        found[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
        for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
            layer = 0
            while f"{tower}.encoder.layers.{layer}.mlp.fc1.weight" in state:
                old, new = f"{tower}.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
                found[f"{new}.attn.in_proj_{kind}"] = torch.cat(
                    [state[f"{old}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
                )
                found[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
                found[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
                found[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
                found[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
                found[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
                layer += 1
    return {name: tensor.detach().clone() for name, tensor in found.items()}


RESNET = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [2, 1, 2, 1], "width": 8, "head_width": 32, "patch_size": None},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 610, "width": 32, "heads": 2, "layers": 2},
}
"""A tiny residual network in the form of open_clip's architecture files."""


def resnet_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of OpenAI's `ModifiedResNet` and text tower."""
    seen, said, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    width = seen["width"]
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.{kind}": (size,) for kind in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    for number, (inside, outside) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
        shapes[f"visual.conv{number}.weight"] = (outside, inside, 3, 3)
        norm(f"visual.bn{number}", outside)
    inside = width
    for stage, blocks in enumerate(seen["layers"]):
        planes = width * 2**stage
        for block in range(blocks):
            name = f"visual.layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (planes, inside, 1, 1)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * planes, planes, 1, 1)
            for number, size in ((1, planes), (2, planes), (3, 4 * planes)):
                norm(f"{name}.bn{number}", size)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, inside, 1, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            inside = 4 * planes
    wide = 32 * width
    shapes["visual.attnpool.positional_embedding"] = ((seen["image_size"] // 32) ** 2 + 1, wide)
    for letter, outside in (("q", wide), ("k", wide), ("v", wide), ("c", embed)):
        shapes[f"visual.attnpool.{letter}_proj.weight"] = (outside, wide)
        shapes[f"visual.attnpool.{letter}_proj.bias"] = (outside,)
    text = said["width"]
    shapes |= {
        "token_embedding.weight": (said["vocab_size"], text),
        "positional_embedding": (said["context_length"], text),
    }
    shapes |= {
        "text_projection": (text, embed),
        "logit_scale": (),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
    }
    for layer in range(said["layers"]):
        name = f"transformer.resblocks.{layer}"
        shapes |= {f"{name}.attn.in_proj_weight": (3 * text, text), f"{name}.attn.in_proj_bias": (3 * text,)}
        for part, (outside, inside) in {
            "attn.out_proj": (text, text), "mlp.c_fc": (4 * text, text), "mlp.c_proj": (text, 4 * text),
        }.items():  # fmt: skip
            shapes |= {f"{name}.{part}.weight": (outside, inside), f"{name}.{part}.bias": (outside,)}
        for part in ("ln_1", "ln_2"):
            shapes |= {f"{name}.{part}.weight": (text,), f"{name}.{part}.bias": (text,)}
    return shapes


def random_resnet(config: dict[str, Any] = RESNET, *, seed: int = 0) -> dict[str, Tensor]:
    """Random values for `resnet_shapes`; variances are positive and norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in resnet_shapes(config).items():
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
            continue
        noise = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            found[name] = noise.abs() + 0.5
        elif len(shape) > 1:
            found[name] = noise * (2 / torch.tensor(shape[1:]).prod().item()) ** 0.5
        else:
            found[name] = noise * 0.2 + (1.0 if name.endswith("weight") else 0.0)
    return found


def write_original(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path, side_px: int) -> Path:
    """A folder with tensors under original names and a configuration in open_clip's form."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "model_cfg": config}))
    tokenizer().save_pretrained(folder)
    image_processor(side_px).save_pretrained(folder)
    return folder
