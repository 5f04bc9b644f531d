"""How alike are held-out pictures and the training pictures of the same name?

Command:  python recipes/nano/split_report.py
Result:   build/nano/split.json and a summary: for every held-out picture the smallest distance to a training picture
          (root mean square over 20 x 20 pixels on grey, opacity included, mirrored ones too), and how often the
          nearest training picture of all has the right name, which is what copying by eye would reach.
"""

import json

import numpy as np
import torch
from common import BUILD, sprites
from PIL import Image

from foveal.data.sprites import Sprite

SIDE = 20


def thumbnail(sprite: Sprite, mirrored: bool) -> np.ndarray:
    """A small picture on grey with its opacity, as one row of numbers."""
    image = Image.fromarray(sprite.rgba)
    side = max(image.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    small = square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.array(small, np.float32) / 255
    pixels[..., :3] += (1 - pixels[..., 3:]) * 0.5
    return (pixels[:, ::-1] if mirrored else pixels).reshape(-1)


def main() -> None:
    torch.set_num_threads(1)
    pictures = sprites()
    held = [s for n in pictures.names for s in pictures.pictures(n, "test")]
    known = [s for n in pictures.names for s in pictures.pictures(n, "train")]
    wanted = torch.from_numpy(np.stack([thumbnail(s, False) for s in held]))
    distances = torch.minimum(
        *(torch.cdist(wanted, torch.from_numpy(np.stack([thumbnail(s, m) for s in known]))) for m in (False, True))
    )
    distances /= wanted.shape[1] ** 0.5
    names = np.array([s.name for s in known])
    rows, right = [], 0
    for sprite, row in zip(held, distances.numpy(), strict=True):
        own = np.flatnonzero(names == sprite.name)
        nearest = known[own[row[own].argmin()]]
        right += names[row.argmin()] == sprite.name
        rows.append(
            {
                "name": sprite.name,
                "held_out": f"{sprite.source}/{sprite.title}",
                "nearest": f"{nearest.source}/{nearest.title}",
                "distance": round(float(row[own].min()), 4),
            }
        )
    rows.sort(key=lambda r: r["distance"])
    values = np.array([r["distance"] for r in rows])
    (BUILD / "split.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(held)} held-out pictures, {len(known)} training pictures of {len(pictures.names)} names")
    print(f"nearest training picture of the name: least {values.min():.3f}, median {np.median(values):.3f}")
    print(f"below 0.02 (practically the same picture): {(values < 0.02).sum()}; below 0.06: {(values < 0.06).sum()}")
    print(f"nearest training picture of all has the right name: {right / len(held):.1%}")
    for row in rows[:10]:
        print(row)


if __name__ == "__main__":
    main()
