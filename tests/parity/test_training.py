"""Training beside the original code: labels, losses, gradients and steps through stages, packs and the optimizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.data.sample import Sample
from foveal.families import deepseek_vl2, qwen_vl
from foveal.families.load import Loaded
from foveal.processing.picture_prompts import PicturePrompts, to_parts
from foveal.train.batches import StepPacks
from foveal.train.ranks import Ranks
from foveal.train.run import Run
from foveal.train.stage import Stage
from foveal.train.task import NextToken
from foveal.train.trainer import StageRun, Totals
from foveal.weights.names import NameMap
from tests.helpers import checkpoints, layouts, qwen2_5_vl
from tests.helpers import deepseek_vl2 as deepseek
from tests.helpers.qwen_vl import GOLDEN as QWEN_VL
from tests.helpers.qwen_vl import recorded

PICTURES = ("wide.png", "strip.jpg", "tall_alpha.png", "gray_small.png")


class Given:
    """Samples by number, over and over."""

    def __init__(self, conversations: list[list[dict[str, Any]]]) -> None:
        self.samples = [
            Sample(id=str(i), messages=tuple(messages), set="given") for i, messages in enumerate(conversations)
        ]

    def at(self, n: int) -> tuple[Sample, int]:
        return self.samples[n % len(self.samples)], n // len(self.samples)


def started(folder: Path, tmp_path: Path, data: Given, **changes: Any) -> StageRun:
    """A stage over all of `data` a step, in float32, with nothing but what the original does."""
    values: dict[str, Any] = {
        "name": "parity", "steps": 4, "batch": len(data.samples), "trainable": (("*", 1e-3),), "data": data,
        "warmup": 0, "schedule": "constant", "clip": 1e9, "max_tokens": 4096, "dtype": "fp32", "log_every": 1,
    }  # fmt: skip
    run = Run(model=folder, stages=(Stage(**{**values, **changes}),), folder=tmp_path, workers=0, device="cpu")
    stage_run = StageRun(run, run.stages[0], run.load(), ranks=Ranks())
    stage_run.network.train()
    return stage_run


def published(stage_run: StageRun, names: NameMap) -> dict[str, torch.nn.Parameter]:
    return {names.published(name): p for name, p in stage_run.network.named_parameters()}  # type: ignore[misc]


# Qwen-VL: the published fine-tuning script.


def conversations() -> list[list[dict[str, Any]]]:
    """The recorded conversations as samples hold them."""
    images = {f"images/{name}": str(QWEN_VL / "images" / name) for name in PICTURES}
    found = []
    for turns in recorded("training.json")["conversations"]:
        messages = []
        for turn in turns:
            parts = []
            for part in to_parts(turn["value"], images):
                if hasattr(part, "box"):
                    parts.append({"type": "box", "box": part.box})
                elif hasattr(part, "source"):
                    parts.append({"type": "image", "image": part.source})
                else:
                    parts.append({"type": "text", "text": part.text})
            messages.append({"role": turn["from"], "content": parts})
        found.append(messages)
    return found


QWEN_TASK = NextToken(labels="published")
TABLE = ("adapter.positions", False)
"""The resampler's table of positions is fixed."""


@pytest.mark.parametrize("room", [4096, 440])
def test_labels_and_losses_of_qwen_vl(tmp_path: Path, room: int) -> None:
    theirs = recorded("training.json")
    stage_run = started(
        QWEN_VL, tmp_path, Given(conversations()), task=QWEN_TASK, max_tokens=room, trainable=(TABLE, ("*", 1e-3))
    )
    packs = stage_run.feed.packs(0)
    assert len(packs.packs) == (1 if room == 4096 else 2)
    tokens = np.concatenate([pack.tokens for pack in packs.packs])
    said = np.concatenate([_labels(pack) for pack in packs.packs])
    lengths = [sum(mask) for mask in theirs["attention_mask"]]
    prompts = PicturePrompts(stage_run.loaded.processor.tokenizer)
    wanted = [prompts.ours(ids[:n]) for ids, n in zip(theirs["input_ids"], lengths, strict=True)]
    assert tokens.tolist() == [i for ids in wanted for i in ids]
    assert said.tolist() == [i for row, n in zip(theirs["labels"], lengths, strict=True) for i in row[:n]]
    # Worst seen: 5e-7; one pack or two makes no difference.
    assert stage_run.compute(packs).loss == pytest.approx(theirs["loss_train_mode.both"], abs=1e-5)


def _labels(pack: foveal.Packed) -> np.ndarray:
    labels = np.full(len(pack.tokens), -100)
    for span in pack.spans:
        if span.learned:
            labels[span.start : span.stop] = pack.tokens[span.start : span.stop]
    return labels


@pytest.mark.parametrize("rows", ["both", "image_row", "text_row"])
def test_losses_and_gradients_of_qwen_vl(tmp_path: Path, rows: str) -> None:
    theirs = recorded("training.json")
    chosen = {"both": [0, 1], "image_row": [0], "text_row": [1]}[rows]
    data = Given([conversations()[i] for i in chosen])
    stage_run = started(QWEN_VL, tmp_path, data, task=QWEN_TASK, trainable=(TABLE, ("*", 1e-3)), max_tokens=440)
    done = stage_run.compute(stage_run.feed.packs(0))
    assert done.loss == pytest.approx(theirs[f"loss_train_mode.{rows}"], abs=1e-5)  # worst seen: 5e-7
    if rows == "image_row":
        return
    stage_run.ranks.reduce(stage_run.parameters)
    ours = published(stage_run, NameMap.parse(qwen_vl.FAMILY.map_text()))
    norms = theirs[f"grad_norms_train_mode.{rows}"]
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        gradient = ours[name].grad
        if norm is None:
            assert gradient is None, name
        else:  # worst seen: 2.0e-5 relative; where text alone leaves the tower out, both are exactly 0
            assert gradient is not None
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name


def test_four_steps_of_qwen_vl(tmp_path: Path) -> None:
    """The script's `fix_vit`: the tower, `norm_after` and `project` frozen, the table of positions trained."""
    theirs = recorded("training.json")["fix_vit_adamw_losses"]
    rate = theirs["lr"]
    stage_run = started(
        QWEN_VL, tmp_path, Given(conversations()), task=QWEN_TASK, max_tokens=440,
        trainable=(("vision.*", False), ("adapter.norm_after.*", False), ("adapter.project", False), ("*", rate)),
        betas=tuple(theirs["betas"]), eps=theirs["eps"], weight_decay=theirs["weight_decay"],
    )  # fmt: skip
    names = NameMap.parse(qwen_vl.FAMILY.map_text())
    learned = {names.published(name) for name, _, _ in stage_run.optimizer.rows}
    assert {n for n in learned if ".h." not in str(n)} == {n for n in theirs["trainable"] if ".h." not in n}
    # The script decays norms and biases too.
    for group in stage_run.optimizer.adam.param_groups:
        group["weight_decay"] = theirs["weight_decay"]
    losses = [stage_run.update(stage_run.feed.packs(step))[0].loss for step in range(4)]
    # Worst seen: 1.1e-4, in the third step: Adam makes as much of a small gradient as of a large one.
    assert losses == pytest.approx(theirs["losses"], abs=2e-4)


# DeepSeek-VL2: loss of the answers, and what keeps experts even.


@pytest.mark.parametrize("name", deepseek.CHECKPOINTS)
def test_losses_of_deepseek_vl2(tmp_path: Path, name: str) -> None:
    from tests.parity.test_deepseek_vl2 import conversation

    told = deepseek.read(f"{name}/cases.json")["training"]
    folder = deepseek.write(name, tmp_path / "model")
    messages = [
        {"role": m["role"], "content": [p if isinstance(p, dict) else _part(p) for p in m["content"]]}
        for m in conversation(told["case"])
    ]
    stage_run = started(folder, tmp_path, Given([messages]))
    packs = stage_run.feed.packs(0)
    assert _labels(packs.packs[0]).tolist() == told["labels"]
    answers = NextToken(balance=0.0)
    terms = answers.loss(stage_run.network, packs.packs[0])
    alone = float(terms[0][0].detach()) / packs.weights[0][0]
    assert alone == pytest.approx(told["loss_eval_mode"], abs=1e-4)  # worst seen: 2.4e-6
    assert len(packs.weights[0]) == 2  # the second term is the experts'
    norms = told.get("grad_norms_train_mode")
    if norms is None:  # the release cannot train this kind of routing
        return
    stage_run.compute(packs)
    ours = published(stage_run, NameMap.parse(deepseek_vl2.FAMILY.map_text()))
    for path, parameter in ours.items():
        if norms[path] is None:
            assert parameter.grad is None, path
        else:  # worst seen: 8e-6 of the norm
            assert parameter.grad is not None and float(parameter.grad.norm()) == pytest.approx(norms[path], rel=4e-5)


def _part(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": "text", "text": value}
    return {"type": "box", "box": value}


# Qwen2-VL and Qwen2.5-VL beside transformers.

IDS = checkpoints.special_ids()


def answered(seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    messages = layouts.conversation(rng, media=2)
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            message["content"] = [{"type": "text", "text": parts}]
    return [*messages, {"role": "assistant", "content": [{"type": "text", "text": layouts.sentence(rng)}]}]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_equal_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    """Three conversations in packs, against transformers one by one with the same weight for every learned token."""
    oracle = (checkpoints if family == "qwen2_vl" else qwen2_5_vl).oracle(tied=tied)
    folder = checkpoints.write(oracle, tmp_path / "model")
    data = Given([answered(seed) for seed in range(3)])
    stage_run = started(folder, tmp_path, data, max_tokens=500)
    packs = stage_run.feed.packs(0)
    assert len(packs.packs) > 1
    done = stage_run.compute(packs)
    assert isinstance(stage_run.loaded, Loaded)
    oracle.train()
    total = 0.0
    weight = sum(w[0] for w in packs.weights)
    for number in range(3):
        pack = stage_run.feed.piece(stage_run.feed.sample(number))
        labels = torch.from_numpy(_labels(pack))
        scores = oracle(**layouts.oracle_inputs(pack, IDS)).logits[0]
        value = torch.nn.functional.cross_entropy(scores[:-1], labels[1:], reduction="sum") / weight
        value.backward()
        total += float(value.detach())
    assert done.loss == pytest.approx(total, rel=3e-5)  # worst seen: 2e-8
    theirs = dict(oracle.named_parameters())
    names = NameMap.parse(stage_run.loaded.family.map_text())
    for name, parameter in stage_run.network.named_parameters():
        expected = _gradient(names, name, theirs)
        assert parameter.grad is not None
        difference = float((parameter.grad - expected).norm()) / max(1e-12, float(expected.norm()))
        assert difference < 3e-5, (name, difference)  # worst seen: 6.0e-6, of a bias of the keys


def _gradient(names: NameMap, name: str, theirs: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    """transformers' gradient under our name; its parameters are called as in its files, or with a prefix."""
    found = names.published(name)
    candidates = [str(found)] if found else []
    candidates += [c.replace("model.", "model.language_model.", 1) for c in candidates]
    candidates += [c.replace("visual.", "model.visual.", 1) for c in candidates]
    for candidate in candidates:
        if candidate in theirs:
            gradient = theirs[candidate].grad
            return torch.zeros_like(theirs[candidate]) if gradient is None else gradient
    raise KeyError(name)


def test_a_step_is_the_same_with_any_packs(tmp_path: Path) -> None:
    """Gradients of one pack, of several, and of two processes' shares added up are one gradient."""
    folder = checkpoints.write(checkpoints.oracle(), tmp_path / "model")
    data = Given([answered(seed) for seed in range(4)])
    gradients = []
    for room in (4096, 600):
        stage_run = started(folder, tmp_path, data, max_tokens=room)
        stage_run.compute(stage_run.feed.packs(0))
        gradients.append([p.grad.clone() for p in stage_run.parameters if p.grad is not None])
    halves = started(folder, tmp_path, data, max_tokens=600)
    parts: list[StepPacks] = []
    for rank in (0, 1):
        feed = type(halves.feed)(halves.stage, halves.task, halves.feed.processor, rank=rank, world=2)
        parts.append(feed.packs(0))
    totals = Totals.of([w for part in parts for w in part.weights])
    for part in parts:
        halves.shares(part, totals, rank=0)
    gradients.append([p.grad.clone() for p in halves.parameters if p.grad is not None])
    for other in gradients[1:]:
        for mine, theirs in zip(gradients[0], other, strict=True):
            assert float((mine - theirs).norm()) <= 2e-5 * float(mine.norm()) + 1e-9  # worst seen: 7e-7
