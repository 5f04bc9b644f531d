"""Loss and gradients of Qwen-VL's release through `next_token_loss` (DeepSeek-VL2's: tests/parity)."""

from dataclasses import replace

import numpy as np
import pytest

import foveal
from foveal.families.qwen_vl import FAMILY
from foveal.processing.messages import Message
from foveal.processing.picture_prompts import to_parts
from foveal.train.losses.next_token import next_token_loss, targets
from foveal.weights.names import NameMap
from tests.helpers import qwen_vl


@pytest.fixture(scope="module")
def training():
    return qwen_vl.recorded("training.json")


def conversations(training):
    """The recorded conversations in one pack, with the labels of the release: answers and the frame of every turn."""
    ours = qwen_vl.model().processor
    processing = replace(ours.processing, chat=replace(ours.processing.chat, labels="published"))
    processor = type(ours)(tokenizer=ours.tokenizer, processing=processing, context_tokens=ours.context_tokens)
    images = {"images/wide.png": str(qwen_vl.GOLDEN / "images/wide.png")}
    packs = [
        processor.process(
            [Message(role=t["from"], parts=tuple(to_parts(t["value"], images))) for t in turns], generate=False
        )
        for turns in training["conversations"]
    ]
    return foveal.join(packs)


@pytest.fixture
def network():
    model = qwen_vl.model()
    network = FAMILY.build(model.config)
    network.load_state_dict(model.network.state_dict())
    return network.train()


def test_targets_are_the_labels_of_the_release(training):
    batch = conversations(training)
    goal = targets(batch)
    rows = [
        np.array(row)[: sum(mask)] for row, mask in zip(training["labels"], training["attention_mask"], strict=True)
    ]
    wanted = np.concatenate([np.append(row[1:], -100) for row in rows])
    assert goal.places.tolist() == np.flatnonzero(wanted != -100).tolist()
    assert goal.tokens.tolist() == wanted[wanted != -100].tolist()


@pytest.mark.parametrize("headed", [False, True])
def test_loss_and_gradients_of_qwen_vl(training, network, headed):
    batch = conversations(training)
    goal = targets(batch)
    network.requires_grad_(True)
    network.adapter.positions.requires_grad_(False)
    if headed:
        hidden = network(batch, keep=("norm",), at=goal.places[:0]).kept["norm"]
        found = next_token_loss(hidden, goal, head=network.language.logits, chunk=10)
    else:
        found = next_token_loss(network(batch, at=goal.places).logits, goal, chunk=10)
    assert found.mean.item() == pytest.approx(training["loss_train_mode.both"], rel=1e-6)  # worst seen: 0
    found.mean.backward()
    names = NameMap.parse(FAMILY.map_text(), where="qwen_vl.map")
    theirs = training["grad_norms_train_mode.both"]
    for name, parameter in network.named_parameters():
        norm = theirs[names.published(name)]
        if norm is not None:
            assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-7), name  # worst seen: 1.5e-5
