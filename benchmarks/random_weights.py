"""Checkpoint folders of a published size with random weights: speed and memory do not depend on the values.

    python benchmarks/random_weights.py qwen2_vl 2b            # writes build/random/qwen2_vl-2b, once

The folder opens in Foveal and in transformers. The vocabulary is that of the small model inside the package, so its
first ids are real tokens and the others are never written.
"""

import argparse
import os
from pathlib import Path

from foveal.families.stand_in import known_family, write_random

ROOT = Path(os.environ.get("RANDOM_DIR", Path(__file__).parent.parent / "build" / "random"))


def random_folder(family: str, size: str) -> Path:
    """The folder of a family's published size, made when it is not there yet."""
    folder = ROOT / f"{family}-{size}"
    if not folder.exists():
        ROOT.mkdir(parents=True, exist_ok=True)
        write_random(folder, known_family(family), size)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family")
    parser.add_argument("size")
    given = parser.parse_args()
    print(random_folder(given.family, given.size))
