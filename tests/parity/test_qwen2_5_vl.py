"""Qwen2.5-VL beside transformers, on tiny random checkpoints through real files.

Worst difference measured over all cases below, in fp32 on values up to 26: 3.6e-5.
"""

import numpy as np
import pytest
import torch

import foveal
from tests.engine.test_equality import compare
from tests.helpers import checkpoints, layouts, likeness, published
from tests.helpers import qwen2_5_vl as helper
from tests.helpers.likeness import IDS, ask, picture, video

SIZES = [
    (28, 28), (29, 31), (56, 200), (113, 97), (111, 225), (224, 224), (225, 223), (336, 84), (85, 337), (141, 169),
    (300, 20), (20, 300), (250, 171), (197, 99), (112, 113), (57, 57), (340, 200), (127, 255), (400, 90), (211, 307),
]  # fmt: skip


def opened(folder, *, tied):
    oracle = helper.oracle(tied=tied, seed=tied)
    checkpoints.write(oracle, folder, shard="60KB")
    return oracle, foveal.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=["untied", "tied"])
def both(request, tmp_path_factory):
    """The same weights in transformers and in Foveal."""
    return opened(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("one"), tied=False)


@pytest.fixture(scope="module")
def vlm(one):
    return one[1]


@pytest.mark.parametrize("seed", range(6))
def test_conversations(both, seed):
    batch = both[1].process(layouts.conversation(np.random.default_rng(seed)))
    likeness.compare_states(*both, batch)


@pytest.mark.parametrize("size", SIZES)
def test_images_of_odd_sizes(one, size):
    """Windows of 112 px: nearly all of these have partial ones."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    oracle, vlm = one
    batch = vlm.process(ask(picture(*size)))
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 12845056})
    theirs = processor(picture(*size), return_tensors="np", size={"shortest_edge": 3136, "longest_edge": 12845056})
    assert batch.grids.tolist() == theirs["image_grid_thw"].tolist()
    likeness.compare_states(oracle, vlm, batch)


@pytest.mark.parametrize(
    ("frames", "size", "fps"),
    [(4, (130, 90), 0.5), (6, (57, 200), 1.0), (2, (300, 113), 2.0), (12, (60, 60), 3.7), (8, (99, 120), 8.0)],
)
def test_videos(one, frames, size, fps):
    """Time numbers are those of transformers; so is everything else where its numbers do not run into each other."""
    oracle, vlm = one
    batch = vlm.process(ask(video(frames, *size, fps), picture(50, 60)))
    kinds, grids = likeness.kinds(batch), likeness.media_grids(batch)
    step = 2 / fps * 2
    positions, delta = likeness.rule_positions(kinds, grids, [[int(k * step) for k in range(grids[0][0])], [0]])
    np.testing.assert_array_equal(batch.positions, positions)
    assert batch.deltas.tolist() == [delta]
    theirs, _ = oracle.model.get_rope_index(
        torch.from_numpy(batch.tokens)[None],
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(grids[1:]),
        video_grid_thw=torch.tensor(grids[:1]),
        second_per_grid_ts=torch.tensor([2 / fps]),
    )
    stop = batch.runs[0].start + batch.runs[0].length  # transformers goes on wrongly after a long video
    np.testing.assert_array_equal(batch.positions[:, :stop], theirs[:, 0, :stop].numpy())
    likeness.compare_states(oracle, vlm, batch)


@pytest.mark.parametrize("fps", [0.5, 1.0, 1.7, 2.0, 2.9, 4.0, 6.3, 8.0])
def test_time_numbers_of_a_long_video(vlm, fps):
    """Products are rounded in float32, as published, then cut."""
    batch = vlm.process(ask(video(60, 40, 40, fps)), min_pixels=56 * 56)
    first = batch.runs[0].start
    per_step = batch.runs[0].length // 30
    ours = batch.positions[0, first : first + batch.runs[0].length : per_step] - first
    step = torch.tensor([2 / fps])[0] * 2
    np.testing.assert_array_equal(ours, (torch.arange(30) * step).long().numpy())


@pytest.mark.parametrize("case", range(3))
def test_64_greedy_tokens(both, case):
    media = [[], [picture(130, 90)], [picture(60, 250), picture(33, 41)]][case]
    likeness.compare_greedy(*both, both[1].process(ask(*media)))


def test_64_greedy_tokens_of_a_video(one):
    # Two steps of 2 numbers each within a width of 6: here transformers goes on at the published place.
    batch = one[1].process(ask(video(4, 168, 100, 2.0)), min_pixels=56 * 56)
    likeness.compare_greedy(*one, batch, second_per_grid_ts=torch.tensor([1.0]))


def test_ids_are_those_of_the_published_template(vlm):
    for seed in range(40):
        messages = layouts.conversation(np.random.default_rng(seed))
        batch = vlm.process(messages)
        text = published.expanded(
            published.string(messages, generate=True), likeness.total_tokens(likeness.media_grids(batch))
        )
        assert batch.tokens.tolist() == published.ids(text)


@pytest.mark.parametrize("group", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_alone_equals_batched_equals_chunked(vlm, group):
    compare(vlm, group, count=3)


def test_saved_folder_opens_in_transformers(both, tmp_path):
    from transformers import Qwen2_5_VLForConditionalGeneration

    oracle, vlm = both
    vlm.save(tmp_path / "saved", shard_bytes=100_000)
    again, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    batch = vlm.process(ask(picture(120, 77)))
    with torch.no_grad():
        likeness.close(vlm.forward(batch).logits, again.eval()(**layouts.oracle_inputs(batch, IDS)).logits[0])
    reloaded = foveal.load(tmp_path / "saved")
    assert reloaded.config == vlm.config
    assert torch.equal(reloaded.forward(batch).logits, vlm.forward(batch).logits)
