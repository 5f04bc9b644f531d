"""Qwen3-VL, dense and with experts, beside transformers, on tiny random checkpoints through real files.

Worst difference measured over all cases below, in fp32 on values up to 18: 2.3e-5.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import foveal
from foveal.families.load import name_map
from foveal.weights.write import save
from tests.engine.test_equality import compare
from tests.helpers import layouts, likeness, published
from tests.helpers import qwen3_vl as helper
from tests.helpers.likeness import IDS, ask, picture, video

SIZES = [
    (32, 32), (33, 31), (64, 200), (113, 97), (111, 225), (224, 224), (225, 223), (336, 84), (85, 337), (141, 169),
    (300, 20), (20, 300), (250, 171), (197, 99), (112, 113), (57, 57), (340, 200), (127, 255), (400, 90), (211, 307),
]  # fmt: skip
MANY = {"untied": {}, "tied": {"tied": True}, "experts": {"moe": True}}


def opened(folder, **options):
    oracle = helper.oracle(seed=len(options), **options)
    helper.write(oracle, folder, shard="60KB")
    return oracle, foveal.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=MANY)
def each(request, tmp_path_factory):
    """The same weights in transformers and in Foveal."""
    return opened(tmp_path_factory.mktemp(request.param), **MANY[request.param])


@pytest.fixture(scope="module", params=["untied", "experts"])
def kind(request, tmp_path_factory):
    return opened(tmp_path_factory.mktemp("kind"), **MANY[request.param])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def vlm(one):
    return one[1]


def process(vlm, messages, **options):
    return vlm.process(messages, min_pixels=1024, max_pixels=64 * 1024, **options)


def compare_all(oracle, vlm, batch):
    """As for the other families, and the additions to the first layers."""
    likeness.compare_states(oracle, vlm, batch)
    if batch.media:
        kept = vlm.forward(batch, keep=[f"adapter.inner.{k}" for k in range(3)]).kept
        with torch.no_grad():
            seen = oracle.model.visual(torch.from_numpy(batch.patches), torch.from_numpy(batch.grids))
        for k, expected in enumerate(seen.deepstack_features):
            likeness.close(kept[f"adapter.inner.{k}"], expected)


@pytest.mark.parametrize("seed", range(5))
def test_conversations(each, seed):
    compare_all(*each, process(each[1], layouts.conversation(np.random.default_rng(seed))))


@pytest.mark.parametrize("size", SIZES)
def test_images_of_odd_sizes(one, size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    oracle, vlm = one
    settings = json.loads((helper.PUBLISHED / "preprocessor_config.json").read_text())
    theirs = Qwen2VLImageProcessorPil(**settings)(picture(*size), return_tensors="np")
    batch = vlm.process(ask(picture(*size)))
    assert batch.grids.tolist() == theirs["image_grid_thw"].tolist()
    np.testing.assert_allclose(batch.patches, theirs["pixel_values"], rtol=0, atol=1e-6)
    compare_all(oracle, vlm, batch)


@pytest.mark.parametrize(
    ("frames", "size", "fps"),
    [(4, (130, 90), 0.5), (7, (57, 200), 1.0), (1, (80, 60), 3.0), (2, (300, 113), 2.0), (13, (60, 60), 3.7),
     (8, (99, 120), 8.0)],
)  # fmt: skip
def test_videos(kind, frames, size, fps):
    """Sizes, words, ids and positions are those of transformers; so are all numbers."""
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    oracle, vlm = kind
    messages = ask(video(frames, *size, fps), picture(50, 60))
    batch = vlm.process(messages)
    high, wide = smart_resize(max(2, frames), size[1], size[0], 2, 32, 4096, 25165824)
    steps = -(-frames // 2)
    assert batch.grids[0].tolist() == [steps, high // 16, wide // 16]

    times = Qwen3VLProcessor._calculate_timestamps(None, list(range(frames)), fps)
    pads = "<|video_pad|>" * (high * wide // 1024)
    written = "".join(f"<{t:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for t in times)
    image = "<|image_pad|>" * int(batch.grids[1].prod() // 4)
    text = (
        f"<|im_start|>user\n{written}<|vision_start|>{image}<|vision_end|>Find the red bicycle.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert batch.tokens.tolist() == published.ids(text)

    kinds, grids = likeness.kinds(batch), likeness.media_grids(batch)
    theirs, delta = oracle.model.get_rope_index(
        torch.from_numpy(batch.tokens)[None],
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.tensor(grids[1:]),
        video_grid_thw=torch.tensor(grids[:1]),
    )
    np.testing.assert_array_equal(batch.positions, theirs[:, 0].numpy())
    assert batch.deltas.tolist() == [int(delta)]
    compare_all(oracle, vlm, batch)


@pytest.mark.parametrize("case", range(3))
def test_64_greedy_tokens(each, case):
    media = [[], [picture(130, 90)], [picture(60, 250), video(5, 70, 40, 2.0)]][case]
    likeness.compare_greedy(*each, process(each[1], ask(*media)))


@pytest.mark.parametrize("group", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_alone_equals_batched_equals_chunked(kind, group):
    compare(kind[1], group, count=3)


def test_saved_folder_opens_in_transformers(kind, tmp_path):
    from transformers import AutoModelForImageTextToText

    oracle, vlm = kind
    vlm.save(tmp_path / "saved", shard_bytes=100_000)
    again, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "saved", output_loading_info=True, dtype=torch.float32
    )
    assert type(again) is type(oracle)
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    batch = process(vlm, ask(picture(120, 77), video(3, 50, 50, 1.0)))
    with torch.no_grad():
        likeness.close(vlm.forward(batch).logits, again.eval()(**layouts.oracle_inputs(batch, IDS)).logits[0])
    reloaded = foveal.load(tmp_path / "saved")
    assert reloaded.config == vlm.config
    assert torch.equal(reloaded.forward(batch).logits, vlm.forward(batch).logits)


@pytest.mark.parametrize("width", [28, 24, 48])
def test_experts_are_read_in_both_layouts(width, tmp_path):
    """With 24 and 48 one of the two tensors of a layer is square, and the other tells which layout it is."""
    oracle = helper.oracle(moe=True, expert_width=width)
    folder = helper.write(oracle, tmp_path / "library")
    vlm = foveal.load(folder)
    read = vlm.network.state_dict()
    up = load_file(folder / "model.safetensors")["model.language_model.layers.0.mlp.experts.gate_up_proj"]
    assert torch.equal(read["language.layers.0.mlp.experts.gate_up"], up.mT)
    save(vlm.network, tmp_path / "official", name_map(vlm.family))
    tensors = load_file(tmp_path / "official" / "model.safetensors")
    assert torch.equal(tensors["model.language_model.layers.0.mlp.experts.gate_up_proj"], up.mT)
    helper.write_processing(tmp_path / "official")
    shutil.copy(folder / "config.json", tmp_path / "official")
    for name, tensor in foveal.load(tmp_path / "official").network.state_dict().items():
        assert torch.equal(tensor, read[name]), name


@pytest.mark.parametrize("width", [24, 48])
def test_square_experts_are_saved_as_transformers_reads_them(width, tmp_path):
    """It tells the two layouts apart by their shapes, which are equal here."""
    oracle = helper.oracle(moe=True, expert_width=width)
    vlm = foveal.load(helper.write(oracle, tmp_path / "library"))
    vlm.save(tmp_path / "saved")
    again = type(oracle).from_pretrained(tmp_path / "saved", dtype=torch.float32)
    for (name, one), two in zip(oracle.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    for name, tensor in foveal.load(tmp_path / "saved").network.state_dict().items():
        assert torch.equal(tensor, vlm.network.state_dict()[name]), name


def test_other_spellings_are_read(tmp_path):
    folder = helper.write(helper.oracle(), tmp_path)
    official = foveal.load(folder).network
    tensors = load_file(folder / "model.safetensors")
    renamed = {n.replace("model.visual.", "visual.").replace("language_model.", ""): t for n, t in tensors.items()}
    assert not set(renamed) & set(tensors) - {"lm_head.weight"}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    for (name, one), two in zip(official.named_parameters(), foveal.load(folder).network.parameters(), strict=True):
        assert torch.equal(one, two), name
