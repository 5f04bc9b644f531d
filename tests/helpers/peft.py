"""Tiny base models whose weights depend on numpy's generator alone, and adapters that PEFT made for them.

`python -m tests.helpers.peft` makes `tests/data_files/peft` anew; it needs the `peft` package (0.21.2 was used) and
transformers. The tests read those files and need neither.
"""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from foveal.core.packed import Packed
from foveal.families.clip import FAMILY as CLIP
from foveal.families.load import save_folder
from foveal.families.qwen2_vl import FAMILY as QWEN2_VL
from foveal.families.vlm import VLM
from tests.helpers.processing import processor

FOLDER = Path(__file__).parent.parent / "data_files/peft"
QWEN2_VL_CONFIG = QWEN2_VL.size("tiny")
CLIP_CONFIG = CLIP.size("tiny")

ADAPTERS: dict[str, dict[str, Any]] = {
    "listed": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj", "qkv"],
        "rank_pattern": {"v_proj": 2, r"layers\.0\.self_attn\.q_proj": 3},
        "alpha_pattern": {"qkv": 3},
    },
    "regex": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": r".*(visual\.blocks\.\d+\.mlp\.fc\d|visual\.merger\.mlp\.0|language_model.*\.(o|gate)_proj)",
        "use_rslora": True,
        "lora_dropout": 0.05,
        "modules_to_save": ["merger.mlp.2"],
    },
    "clip": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "fc1"]},
}
SHOWN = 4
"""Tokens whose logits are recorded."""


def fill(network: nn.Module, seed: int = 5) -> Any:
    """Random values for every parameter, the same under every release of torch."""
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.copy_(0.15 * noise + (parameter.ndim < 2))
    return network.eval().requires_grad_(False)


def qwen2_vl(**changes: Any) -> VLM:
    config = replace(QWEN2_VL_CONFIG, language=replace(QWEN2_VL_CONFIG.language, **changes))
    made: VLM = fill(QWEN2_VL.build(config))
    return made


def clip() -> Any:
    return fill(CLIP.build(CLIP_CONFIG))


def question() -> Packed:
    """A picture of noise and a few words."""
    noise = np.random.default_rng(1).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    words = {"type": "text", "text": "What is in the picture?"}
    content = [{"type": "image", "image": Image.fromarray(noise)}, words]
    return processor().process([{"role": "user", "content": content}])


def pair() -> tuple[Tensor, Tensor]:
    """Pixels [1, 3, 32, 32] of noise, and tokens [6] of a text."""
    random = np.random.default_rng(2)
    pixels = torch.from_numpy(random.standard_normal((1, 3, 32, 32), dtype=np.float32))
    return pixels, torch.tensor([1, 7, 300, 12, 500, 639])


def logits(network: VLM, packed: Packed) -> Tensor:
    with torch.no_grad():
        return network(packed).logits


def vectors(network: Any) -> Tensor:
    """Those of `pair`, the picture's first [2, E]."""
    pixels, tokens = pair()
    patches = pixels.view(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).reshape(16, -1)
    with torch.no_grad():
        seen = network.embed_images(patches, np.array([[1, 4, 4]]))
        said = network.embed_text(tokens.numpy(), np.array([0, len(tokens)]))
    return torch.cat((seen, said))


def _write_base(folder: Path) -> Path:
    save_folder(
        folder, family=QWEN2_VL, config=QWEN2_VL_CONFIG, network=qwen2_vl(), processor=processor(), generation={}
    )
    return folder


def their_logits(model: Any, packed: Packed) -> Tensor:
    """Logits of transformers' model, with or without PEFT around it."""
    ids = torch.from_numpy(packed.tokens)[None]
    kinds = torch.zeros_like(ids)
    for run in packed.runs:
        kinds[0, run.start : run.start + run.length] = 1
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.from_numpy(packed.patches),
            image_grid_thw=torch.from_numpy(packed.grids),
            mm_token_type_ids=kinds,
        )
    return out.logits[0]


def their_clip(folder: Path) -> Any:
    from transformers import CLIPConfig, CLIPModel

    published = CLIP.to_published(CLIP_CONFIG)
    from foveal.families.load import name_map
    from foveal.weights.write import save

    save(clip(), folder, name_map(CLIP))
    CLIPConfig(**published).save_pretrained(folder)
    return CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def main() -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import save_file
    from transformers import Qwen2VLForConditionalGeneration

    base = _write_base(Path(tempfile.mkdtemp()) / "base")

    def qwen() -> Any:
        return Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()

    packed = question()
    torch.manual_seed(0)
    for name, settings in ADAPTERS.items():
        theirs = their_clip(Path(tempfile.mkdtemp())) if name == "clip" else qwen()
        adapted = get_peft_model(theirs, LoraConfig(**settings)).eval()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in (p for p in adapted.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name == "clip":
                pixels, tokens = pair()
                out = adapted(input_ids=tokens[None], pixel_values=pixels)
                recorded = torch.cat((out.image_embeds, out.text_embeds))
            else:
                recorded = their_logits(adapted, packed)[-SHOWN:]
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        save_file({"recorded": recorded.contiguous()}, folder / "recorded.safetensors")
        for file in folder.iterdir():
            file.chmod(0o644)
        config = folder / "adapter_config.json"
        said = json.loads(config.read_text()) | {"base_model_name_or_path": "tiny"}
        if isinstance(said["target_modules"], list):
            said["target_modules"].sort()
        config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        if name != "clip":  # and the way back
            from foveal.families.adapter import open_adapter, save_adapter

            ours = qwen2_vl()
            open_adapter(ours, folder, family=QWEN2_VL, config=QWEN2_VL_CONFIG)
            whole = ["adapter.down.weight", "adapter.down.bias"] if "modules_to_save" in settings else []
            back = Path(tempfile.mkdtemp())
            save_adapter(ours, back, family=QWEN2_VL, config=QWEN2_VL_CONFIG, whole=whole)
            again = their_logits(PeftModel.from_pretrained(qwen(), back).eval(), packed)
            mine = logits(ours, packed)
            print(f"{name}: PEFT's file here {(mine[-SHOWN:] - recorded).abs().max():.1e}, ", end="")
            print(f"ours in PEFT {(mine - again).abs().max():.1e}, largest logit {again.abs().max():.2f}")
        print(name, sum(p.stat().st_size for p in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
