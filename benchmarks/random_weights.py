"""Checkpoint folders of a published size with random weights: speed and memory do not depend on the values.

    python benchmarks/random_weights.py qwen2_vl 2b            # writes build/random/qwen2_vl-2b, once

The folder opens in Foveal and in transformers. The vocabulary is that of the small model inside the package, so its
first ids are real tokens and the others are never written.
"""

import argparse
from pathlib import Path

import torch

import foveal
from foveal.families.describe import families
from foveal.families.load import save_folder

ROOT = Path(__file__).parent.parent / "build" / "random"


def random_folder(family: str, size: str, dtype: torch.dtype = torch.bfloat16, root: Path = ROOT) -> Path:
    """The folder of a family's published size, made when it is not there yet."""
    folder = root / f"{family}-{size}"
    if folder.exists():
        return folder
    declared = families()[family]
    config = declared.size(size)
    with torch.device("meta"):
        network = declared.build(config)
    network = network.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    small = foveal.load()
    root.mkdir(parents=True, exist_ok=True)
    save_folder(
        folder,
        family=declared,
        config=config,
        network=network,
        processor=small.processor,
        generation={},
    )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("size")
    given = parser.parse_args()
    print(random_folder(given.family, given.size))
