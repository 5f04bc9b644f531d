"""Writes the trained nano as a published Qwen2-VL folder.

Command:  python recipes/nano/4_release.py tally src/foveal/nano
The running average of the weights is written where a stage kept one.
Result:   config.json, generation_config.json, tokenizer and processor files, bfloat16 weights in shards below 15 MB.
          The model card (README.md) is kept when the folder already has one.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common import BUILD
from model import CONFIG, network, processor

from foveal.families.load import save_folder
from foveal.families.qwen2_vl import FAMILY
from foveal.train.checkpoint import read_checkpoint


def main() -> None:
    stage, folder = sys.argv[1], Path(sys.argv[2])
    kept, step = read_checkpoint(BUILD / stage / "last.safetensors")
    vlm = network()
    older: dict[str, torch.Tensor] = {}
    if stage == "align":  # it froze the tower, whose weights are those of the stage before
        older, _ = read_checkpoint(BUILD / "tower" / "last.safetensors")
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            found = [kept[k] for k in (f"average/vlm.{name}", f"master/vlm.{name}") if k in kept]
            parameter.copy_(found[0] if found else older[f"master/{name}"])
    reader = processor()
    end, pad = reader.tokenizer.special("<|im_end|>"), reader.tokenizer.special("<|endoftext|>")
    with kept_card(folder / "README.md"):
        save_folder(
            folder,
            family=FAMILY,
            config=CONFIG,
            network=vlm.to(torch.bfloat16),
            processor=reader,
            generation={"eos_token_id": [end, pad], "pad_token_id": pad, "do_sample": False, "max_new_tokens": 256},
            shard_bytes=10_000_000,
        )
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"step {step} of {stage} -> {folder}: {size / 1e6:.2f} MB, {sorted(f.name for f in folder.iterdir())}")


@contextmanager
def kept_card(card: Path) -> Iterator[None]:
    """Takes the model card out of its folder while that is written anew: a save refuses what it would lose."""
    text = card.read_text(encoding="utf-8") if card.exists() else None
    card.unlink(missing_ok=True)
    try:
        yield
    finally:
        if text is not None:
            card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
