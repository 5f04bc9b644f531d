"""Weights of transformers' ViT and SigLIP as the authors' code writes them to `.npz`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def vit(model: Any, *, old: bool = True) -> Arrays:
    """`ViTForImageClassification` in the names of the original code (or of big_vision, with positions before it)."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    bare = "classifier.weight" not in state
    start = "" if bare else "vit."
    names = dict(_reached(state, start + "embeddings"))
    found = {
        "cls": names["cls_token"],
        "embedding/kernel": names["patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": names["patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": state[start + "layernorm.weight"],
        "Transformer/encoder_norm/bias": state[start + "layernorm.bias"],
    }
    found["Transformer/posembed_input/pos_embedding" if old else "pos_embedding"] = names["position_embeddings"]
    if bare:
        found |= {"pre_logits/kernel": state["pooler.dense.weight"].T, "pre_logits/bias": state["pooler.dense.bias"]}
        found |= {"head/kernel": np.zeros((len(found["cls"][0, 0]), 21), np.float32), "head/bias": np.zeros(21)}
    else:
        found |= {"head/kernel": state["classifier.weight"].T, "head/bias": state["classifier.bias"]}
    tower = model if bare else model.vit
    for number, layer in enumerate(tower.layers):
        numbers = (1, 2, 3) if old else (0, 1, 0)
        for name, array in _block(layer, model.config.num_attention_heads, numbers):
            found[f"Transformer/encoderblock_{number}/{name}"] = array
    return found


def _reached(state: Arrays, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in state.items():
        if name.startswith(prefix + "."):
            yield name[len(prefix) + 1 :], value


def _block(layer: Any, heads: int, numbers: tuple[int, int, int]) -> Iterator[tuple[str, np.ndarray]]:
    """One encoder block, of ViT or of SigLIP."""
    state = {name: value.detach().numpy() for name, value in layer.state_dict().items()}

    def one(*ends: str) -> np.ndarray:
        (value,) = [v for n, v in state.items() if n.endswith(ends)]
        return value

    attention, norm, mlp = numbers
    where = f"MultiHeadDotProductAttention_{attention}"
    for name in ("query", "key", "value"):
        weight, bias = one(f"{name[0]}_proj.weight"), one(f"{name[0]}_proj.bias")
        yield f"{where}/{name}/kernel", weight.T.reshape(len(weight), heads, -1)
        yield f"{where}/{name}/bias", bias.reshape(heads, -1)
    weight = one("o_proj.weight", "out_proj.weight")
    yield f"{where}/out/kernel", weight.T.reshape(heads, -1, len(weight))
    yield f"{where}/out/bias", one("o_proj.bias", "out_proj.bias")
    for number, ends in ((0, ("layernorm_before", "layer_norm1")), (norm, ("layernorm_after", "layer_norm2"))):
        yield f"LayerNorm_{number}/scale", one(*(f"{end}.weight" for end in ends))
        yield f"LayerNorm_{number}/bias", one(*(f"{end}.bias" for end in ends))
    for number in (0, 1):
        yield f"MlpBlock_{mlp}/Dense_{number}/kernel", one(f"fc{number + 1}.weight").T
        yield f"MlpBlock_{mlp}/Dense_{number}/bias", one(f"fc{number + 1}.bias")


def siglip(model: Any) -> Arrays:
    """`SiglipModel` in big_vision's names."""
    found: Arrays = {"t": model.logit_scale.detach().numpy(), "b": model.logit_bias.detach().numpy()}
    seen, said = model.config.vision_config, model.config.text_config
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    image, text = dict(_reached(state, "vision_model")), dict(_reached(state, "text_model"))
    found |= {
        "img/embedding/kernel": image["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0),
        "img/embedding/bias": image["embeddings.patch_embedding.bias"],
        "img/pos_embedding": image["embeddings.position_embedding.weight"][None],
        "img/Transformer/encoder_norm/scale": image["post_layernorm.weight"],
        "img/Transformer/encoder_norm/bias": image["post_layernorm.bias"],
        "txt/Embed_0/embedding": text["embeddings.token_embedding.weight"],
        "txt/pos_embedding": text["embeddings.position_embedding.weight"][None],
        "txt/Encoder_0/encoder_norm/scale": text["final_layer_norm.weight"],
        "txt/Encoder_0/encoder_norm/bias": text["final_layer_norm.bias"],
        "txt/head/kernel": text["head.weight"].T,
        "txt/head/bias": text["head.bias"],
        "img/MAPHead_0/probe": image["head.probe"],
        "img/MAPHead_0/LayerNorm_0/scale": image["head.layernorm.weight"],
        "img/MAPHead_0/LayerNorm_0/bias": image["head.layernorm.bias"],
    }
    for number in (0, 1):
        dense = f"img/MAPHead_0/MlpBlock_0/Dense_{number}"
        found[f"{dense}/kernel"] = image[f"head.mlp.fc{number + 1}.weight"].T
        found[f"{dense}/bias"] = image[f"head.mlp.fc{number + 1}.bias"]
    heads, where = seen.num_attention_heads, "img/MAPHead_0/MultiHeadDotProductAttention_0"
    weights = np.split(image["head.attention.in_proj_weight"], 3), np.split(image["head.attention.in_proj_bias"], 3)
    for name, weight, bias in zip(("query", "key", "value"), *weights, strict=True):
        found[f"{where}/{name}/kernel"] = weight.T.reshape(len(weight), heads, -1)
        found[f"{where}/{name}/bias"] = bias.reshape(heads, -1)
    out = image["head.attention.out_proj.weight"]
    found[f"{where}/out/kernel"] = out.T.reshape(heads, -1, len(out))
    found[f"{where}/out/bias"] = image["head.attention.out_proj.bias"]
    for prefix, tower, config in (
        ("img/Transformer", model.vision_model, seen),
        ("txt/Encoder_0", model.text_model, said),
    ):
        for number, layer in enumerate(tower.encoder.layers):
            for name, array in _block(layer, config.num_attention_heads, (0, 1, 0)):
                found[f"{prefix}/encoderblock_{number}/{name}"] = array
    return found


def stacked(arrays: Arrays) -> Arrays:
    """The same with the blocks of every tower in one array, as big_vision writes models that scan over layers."""
    found: Arrays = {}
    several: dict[str, dict[int, np.ndarray]] = {}
    for name, array in arrays.items():
        before, block, after = name.partition("/encoderblock_")
        if not block:
            found[name] = array
            continue
        number, _, rest = after.partition("/")
        several.setdefault(f"{before}/encoderblock/{rest}", {})[int(number)] = array
    return found | {name: np.stack([parts[n] for n in sorted(parts)]) for name, parts in several.items()}


def half(arrays: Arrays) -> Arrays:
    """The same in bfloat16, as numpy writes a type that it does not know."""
    return {
        name: torch.from_numpy(np.ascontiguousarray(a)).bfloat16().view(torch.int16).numpy().view("V2")
        for name, a in arrays.items()
    }


def write(path: Path, arrays: Arrays, prefix: str = "") -> Path:
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return path
