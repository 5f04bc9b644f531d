"""Stages 5 to 11: the language model learns to read the visual tokens, then everything learns together.

Command:  python recipes/nano/3_language.py words   # tower of `bent`, fixed: the words of answers (beside `tower`)
          python recipes/nano/3_language.py align   # tower of `tower`, fixed; simple scenes
          python recipes/nano/3_language.py joint   # everything; scenes as in the test
          python recipes/nano/3_language.py sharp   # everything; names tied to words, finding asked often
          python recipes/nano/3_language.py fine    # the same, scenes as gentle as the test's
          python recipes/nano/3_language.py match   # names find their pictures: guided attention, other rotary base
          python recipes/nano/3_language.py tally   # the same at slower rates, counting asked more
          torchrun --nproc-per-node 2 recipes/nano/3_language.py joint    # the same on two cores, twice the batch
Hardware: two cores of an Intel Xeon with AMX.
Time:     words 8 minutes, align 7 (two processes), joint 29 (two processes); on one core sharp 58,
          fine 42, match 70, tally 18.
Result:   1,000 held-out scenes (`5_exam.py`): naming 89.1 %, finding 68.9 %, present 87.5 %, counting 78.1 %.
"""

import logging
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    BUILD,
    RANK,
    WIDTH,
    WORLD,
    compiled,
    feed,
    grid_of,
    join_processes,
    patches_of,
    sprites,
    start_weights,
    take_over,
)
from model import EARLY_THETA, LANGUAGE, answer_loss, cut, guide_of, messages, name_embeddings, network, processor

from foveal.core.packed import join
from foveal.data.dense import class_names, dense_targets
from foveal.data.questions import Questioner
from foveal.data.scenes import SceneMaker, SceneSettings
from foveal.data.sprites import SpriteSet, read_names
from foveal.eval.metrics import Mentions
from foveal.train.dense import DenseHeads, WordHead
from foveal.train.loop import run
from foveal.train.stage import Stage

LENGTH = 160
SCENES = SceneSettings(
    kinds=(0.2, 0.5, 0.3), objects=(2, 4), shape_share=0.12,
    turn_deg=22, stretch=1.4, tint=0.25, warp=0.08, erase=0.08, wild=0.3,
)  # fmt: skip
STAGES = {
    "words": (
        Stage(
            name="words", steps=2500, batch=8, warmup=200, floor=0.9, save_every=50,
            trainable=(("vlm.vision.*", None), ("vlm.adapter.*", None), ("vlm.language.*", 1.5e-3), ("heads.*", None)),
        ),
        replace(SCENES, kinds=(0.4, 0.4, 0.2), objects=(2, 3)),
        ("bent",),
    ),
    "align": (
        Stage(
            name="align", steps=1400, batch=8, warmup=100, floor=0.5,
            trainable=(("vlm.vision.*", None), ("vlm.adapter.*", None), ("vlm.language.*", 1.5e-3), ("heads.*", None)),
        ),
        replace(SCENES, kinds=(0.4, 0.4, 0.2), objects=(2, 3)),
        ("tower", "words"),
    ),
    "joint": (
        Stage(
            name="joint", steps=2400, batch=8, warmup=100, weight_decay=0.1, average=0.998,
            trainable=(("vlm.vision.*", 5e-4), ("vlm.adapter.*", 5e-4), ("vlm.language.*", 8e-4), ("heads.*", 5e-4)),
        ),
        SCENES,
        ("tower", "align"),
    ),
    "sharp": (
        Stage(
            name="sharp", steps=8500, batch=16, warmup=200, weight_decay=0.1, average=0.998,
            trainable=(("vlm.vision.*", 5e-4), ("vlm.adapter.*", 5e-4), ("vlm.language.*", 8e-4), ("*", 5e-4)),
        ),
        replace(SCENES, kinds=(0.2, 0.55, 0.25), objects=(2, 5), warp=0.06, wild=0.3, tint=0.22),
        ("tower", "align", "joint"),
    ),
    "fine": (
        Stage(
            name="fine", steps=3200, batch=16, warmup=100, weight_decay=0.1, average=0.998,
            trainable=(("vlm.vision.*", 1.5e-4), ("vlm.adapter.*", 2e-4), ("vlm.language.*", 3.5e-4), ("*", 2e-4)),
        ),
        replace(
            SCENES, kinds=(0.34, 0.38, 0.28), objects=(2, 4), turn_deg=18, stretch=1.25, tint=0.18, warp=0.03,
            erase=0.04, wild=0.15,
        ),
        ("tower", "align", "joint", "sharp"),
    ),
    "match": (
        Stage(
            name="match", steps=5000, batch=16, warmup=100, weight_decay=0.1, average=0.998,
            trainable=(("vlm.vision.*", 2e-4), ("vlm.adapter.*", 2e-4), ("vlm.language.*", 8e-4), ("*", 2e-4)),
        ),
        replace(
            SCENES, kinds=(0.2, 0.52, 0.28), objects=(2, 4), turn_deg=18, stretch=1.25, tint=0.18, warp=0.03,
            erase=0.04, wild=0.15,
        ),
        ("tower", "align", "joint", "sharp", "fine"),
    ),
    "tally": (
        Stage(
            name="tally", steps=900, batch=16, warmup=30, weight_decay=0.1, average=0.99,
            trainable=(("vlm.vision.*", 5e-5), ("vlm.adapter.*", 5e-5), ("vlm.language.*", 3e-4), ("*", 5e-5)),
        ),
        replace(
            SCENES, kinds=(0.15, 0.4, 0.45), objects=(2, 4), turn_deg=18, stretch=1.2, tint=0.16, warp=0.02,
            erase=0.02, wild=0.1,
        ),
        ("tower", "align", "joint", "sharp", "fine", "match"),
    ),
}  # fmt: skip
WEIGHTS = {
    "sharp": {"find": 3.0, "present": 3.0, "relation": 3.0, "side": 2.5},
    "fine": {"find": 2.5, "present": 2.5, "name": 3.0, "count": 3.0, "count_all": 1.5},
    "match": {"find": 4.0, "present": 2.5, "name": 2.5, "count": 2.5, "relation": 2.5},
    "tally": {"find": 3.0, "present": 2.0, "name": 2.5, "count": 4.0, "relation": 2.0},
}
"""How often these stages ask what: `sharp` about one of several things, which `joint` leaves half learnt."""
DECIDING = {"match": (" ", " no", " left", " right"), "tally": (" ", " no", " is", " are", " left", " right")}
"""Words that decide an answer; the stages that know them also guide attention and use the final rotary base."""
OTHERS = 16
"""Small pictures of other things a step: no scene shows them, they only teach the tower to see."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stage, settings, before = STAGES[sys.argv[1]]
    if len(sys.argv) > 2:
        stage = replace(stage, steps=int(sys.argv[2]))
    join_processes()
    pictures = sprites()
    names = class_names(pictures.names)
    index = {name: i for i, name in enumerate(names)}
    sharp, last = stage.name in WEIGHTS, stage.name in DECIDING
    theta = LANGUAGE.theta if last else EARLY_THETA
    whole = torch.nn.ModuleDict({"vlm": network(theta), "heads": DenseHeads(WIDTH, len(names))})
    if sharp:
        rest = SpriteSet.load(BUILD / "others.npz")
        rest_index = {name: i for i, name in enumerate(rest.names, start=1)}
        rest_maker = SceneMaker(
            rest, "train", replace(SCENES, kinds=(1, 0, 0), side=(0.48, 0.6), shape_share=0), seed=9
        )
        whole["others"] = torch.nn.Linear(WIDTH, len(rest.names) + 1)
    start_weights(whole, seed=2)
    if sharp:
        whole["words"] = WordHead(WIDTH)
    whole.to(torch.bfloat16)
    for earlier in before:
        take_over(whole, BUILD / earlier / "last.safetensors")
    compiled(whole)
    reader = processor()
    plurals = {n.name: n.plural for n in read_names()}
    asker = Questioner(plurals)
    mentions = Mentions({form: name for name, plural in asker.plurals.items() for form in (name, plural)})
    maker = SceneMaker(pictures, "train", settings, seed=2 + list(STAGES).index(stage.name))
    freeze = stage.name in ("words", "align")
    weights, names_first = WEIGHTS.get(stage.name), 0.2 if last else 0.6

    def conversation(scene, random):  # type: ignore[no-untyped-def]
        first = random.random() < 0.1
        questions = asker.conversation(random, scene, 7, weights, names_first)
        pack = cut(reader.process(messages(scene, questions, first), generate=False), LENGTH)
        while pack is None:
            questions += asker.conversation(random, scene, 6, weights, names_first)
            pack = cut(reader.process(messages(scene, questions, first), generate=False), LENGTH)
        return pack

    def make(step: int):  # type: ignore[no-untyped-def]
        scenes, packs = [], []
        for i in range(stage.batch):
            number = (step * WORLD + RANK) * stage.batch + i
            scenes.append(maker.make(number, grid=grid_of(step)))
            packs.append(conversation(scenes[-1], np.random.default_rng([5, number])))
        small = None
        if sharp:
            more = [rest_maker.make((step * WORLD + RANK) * OTHERS + i, grid=(3, 3)) for i in range(OTHERS)]
            small = *patches_of(more), dense_targets(more, rest_index)
        pack, target = join(packs), dense_targets(scenes, index)
        return pack, target, small, guide_of(pack, target, index, mentions) if last else None

    def loss(batch):  # type: ignore[no-untyped-def]
        pack, target, small, guide = batch
        value, visual, figures = answer_loss(whole["vlm"], pack, deciding=DECIDING.get(stage.name, ()), guide=guide)
        if not freeze:
            dense, more = whole["heads"].loss(visual, target)
            value = value + 0.3 * dense
            figures |= {k: more[k] for k in ("named", "box_error")}
        if sharp:
            worded, more = whole["words"].loss(visual, name_embeddings(whole["vlm"], names[1:]), target)
            patches, grids, things = small  # the feed makes tensors of bare arrays
            seen = whole["vlm"].adapter(whole["vlm"].vision(patches.bfloat16(), grids.numpy()))
            thing = torch.from_numpy(things.thing)
            scores = whole["others"](seen).float()
            value = value + 0.5 * worded + 0.3 * F.cross_entropy(scores, thing, label_smoothing=0.05)
            right = (scores.argmax(1) == thing)[thing > 0].float().mean().item()
            figures |= more | {"others": right}
        return value, figures

    folder = BUILD / stage.name if RANK == 0 else BUILD / f"{stage.name}-{RANK}"
    run(stage, whole, loss, lambda first: feed(make, first, stage.steps), folder)
    if WORLD > 1:
        torch.distributed.barrier()  # without it a process may leave while another still talks to it
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
