"""Teaches nano ten new names from 50 pictures by low-rank updates, and merges them.

Command:  python recipes/nano/8_new_things.py [FOLDER]     (after 0_assets.py; FOLDER: another model than that inside)
Hardware: one core; 2 minutes of its time.
Result:   build/nano/new_things/adapter (PEFT's files) and .../merged. 150 scenes each, drawings that were not trained
          on: new things named 0 % before and 24.0 % after (18 to 31), known things 84.0 % and 77.3 % (70 to 83).
          Merged and live scores differ by at most 2.1e-5 in float32, 1.1e-6 of the largest; the answers are the same.

The picture that tests a name is from another source than the five that teach it. Half of every batch shows
things that nano knew, or it would forget their names. While nano's tower learned to see (stage `sharp`), it had to
tell apart the training pictures of 1,195 things without names, these ten among them; their names are new to it.
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import BUILD, sprites
from model import learned_places, messages
from PIL import Image

import foveal
from foveal.core.packed import join
from foveal.data.questions import Questioner
from foveal.data.scenes import Scene, SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet, read_names
from foveal.eval.metrics import Mentions, interval
from foveal.train.loop import run
from foveal.train.lora import Lora, apply, save_adapter
from foveal.train.merge import merge_adapter
from foveal.train.stage import Stage

NEW = {
    "1f419": ("octopus", "octopuses"),
    "1f40a": ("crocodile", "crocodiles"),
    "1f413": ("rooster", "roosters"),
    "1f47b": ("ghost", "ghosts"),
    "1f480": ("skull", "skulls"),
    "1f3ba": ("trumpet", "trumpets"),
    "1f484": ("lipstick", "lipsticks"),
    "1f50b": ("battery", "batteries"),
    "26f2": ("fountain", "fountains"),
    "26fa": ("tent", "tents"),
}
PICTURES = 5
SCENES = SceneSettings(kinds=(1, 0, 0), shape_share=0, turn_deg=18, stretch=1.25, tint=0.2, warp=0.04, wild=0.2)
EXAM = SceneSettings(kinds=(1, 0, 0), shape_share=0)
ASKED = 150
LORA = Lora(targets=("adapter.*", "language.layers.*"), rank=16, alpha=32.0)
STAGE = Stage(
    name="new_things", steps=120, batch=16, warmup=12, weight_decay=0.0, log_every=10,
    trainable=(("*.lora.*", 4e-3), ("*", None)),
)  # fmt: skip
FOLDER = BUILD / "new_things"


def new_pictures() -> SpriteSet:
    """The pictures of the new things: all that are kept for tests, and of each five to train with."""
    whole = SpriteSet.load(BUILD / "others.npz")
    chosen = [s for code in NEW for s in (*whole.pictures(code, "train")[:PICTURES], *whole.pictures(code, "test"))]
    kept = SpriteSet(chosen)
    counts = {NEW[code][0]: len(kept.pictures(code, "train")) for code in NEW}
    if set(counts.values()) != {PICTURES}:
        sys.exit(f"expected {PICTURES} training pictures of each name, found {counts}; run 0_assets.py again.")
    return kept


def named(scene: Scene) -> Scene:
    """The scene with names in the place of code points."""
    return replace(scene, objects=tuple(replace(o, name=NEW.get(o.name, (o.name,))[0]) for o in scene.objects))


def share(model: foveal.Model, maker: SceneMaker, mentions: Mentions, asker: Questioner) -> tuple[int, list[str]]:
    """How many of `ASKED` things are named right, and the answers."""
    scenes, said = [named(maker.make(i)) for i in range(ASKED)], []
    for first in range(0, ASKED, 50):
        asked = []
        for i, scene in enumerate(scenes[first : first + 50], start=first):
            question = asker.ask("name", np.random.default_rng([3, i]), scene)
            picture = {"type": "image", "image": Image.fromarray(scene.image)}
            asked.append([{"role": "user", "content": [picture, {"type": "text", "text": question.text}]}])
        said += [answer.text for answer in model.chat_all(asked, max_tokens=16, temperature=0.0)]
    right = sum(mentions(text)[:1] == [s.objects[0].name] for text, s in zip(said, scenes, strict=True))
    return right, said


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    began = time.perf_counter()
    base = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    model = foveal.load(base, device="cpu")
    new, old = new_pictures(), sprites()
    plurals = {n.name: n.plural for n in read_names()} | dict(NEW.values())
    mentions = Mentions({form: name for name, plural in plurals.items() for form in (name, plural)})
    exams = {
        "new": SceneMaker(new, "test", EXAM, seed=21),
        "known": SceneMaker(old, "test", EXAM, seed=22),
    }
    tester, teacher = Questioner(plurals, "test"), Questioner(plurals)
    before = {name: share(model, maker, mentions, tester)[0] for name, maker in exams.items()}
    print("before:", figures(before), flush=True)

    makers = SceneMaker(new, "train", SCENES, seed=23), SceneMaker(old, "train", SCENES, seed=24)

    def batches(first: int):  # type: ignore[no-untyped-def]
        for step in range(first, STAGE.steps):
            packs = []
            for number in range(step * STAGE.batch, (step + 1) * STAGE.batch):
                scene = named(makers[number % 2].make(number, grid=(6, 6)))
                question = teacher.ask("name", np.random.default_rng([4, number]), scene)
                packs.append(model.processor.process(messages(scene, [question]), generate=False))
            yield join(packs)

    def loss(pack):  # type: ignore[no-untyped-def]
        places = learned_places(pack)
        scores = model.network(pack, at=places).logits
        wanted = torch.from_numpy(pack.tokens[places + 1])
        hits = (scores.argmax(-1) == wanted).float().mean().item()
        return F.cross_entropy(scores.float(), wanted), {"answer_tokens": hits}

    names = apply(model.network, LORA)
    learned = sum(p.numel() for n, p in model.network.named_parameters() if ".lora." in n)
    total = sum(p.numel() for p in model.network.parameters())
    print(f"{len(names)} layers get {learned:,} values to learn, {learned / total:.1%} of all", flush=True)
    (FOLDER / "last.safetensors").unlink(missing_ok=True)  # every run of this recipe begins anew
    run(STAGE, model.network, loss, batches, FOLDER)
    save_adapter(model.network, FOLDER / "adapter", family=model.family, config=model.config, base="foveal nano")
    graded(base, exams, mentions, tester)
    print(f"{time.perf_counter() - began:.0f} s")


def graded(base: Path | None, exams: dict[str, SceneMaker], mentions: Mentions, tester: Questioner) -> None:
    """Figures with the adapter as it was saved, computed in float32, and how near the merged checkpoint is."""
    live = foveal.load(base, adapter=FOLDER / "adapter", dtype="float32", device="cpu")
    results = {name: share(live, maker, mentions, tester) for name, maker in exams.items()}
    print("after: ", figures({name: right for name, (right, _) in results.items()}), flush=True)
    done = merge_adapter(base, FOLDER / "adapter", FOLDER / "merged", dtype="float32")
    merged = foveal.load(FOLDER / "merged", device="cpu")
    same = share(merged, exams["new"], mentions, tester)[1] == results["new"][1]
    print(
        f"merged: {done.values:,} scores of {done.samples} samples differ from the live adapter's by at most "
        f"{done.stored * done.largest:.1e} ({done.stored:.1e} of the largest); "
        f"it says the same of all new things: {same}"
    )


def figures(right: dict[str, int]) -> str:
    """Shares with 95 % intervals."""
    texts = []
    for name, count in right.items():
        low, high = interval(count, ASKED)
        texts.append(f"{name} things named {count / ASKED:.1%} ({low:.0%} to {high:.0%})")
    return "; ".join(texts)


if __name__ == "__main__":
    main()
