"""What planning says of Qwen2.5-VL and Qwen3-VL is what their networks need, and what their processors give."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from foveal.families import qwen2_5_vl, qwen3_vl
from foveal.families.load import to_json
from foveal.families.plan import Planner, Request
from foveal.nn.routing import Routing
from foveal.processing.intake import Knobs, VideoShape
from foveal.processing.processor import Processor
from tests.families.test_sizes import Peak, one_image
from tests.helpers import qwen3_vl as helper

TEXT = {"width": 192, "heads": 6, "kv_heads": 1, "head_dim": 32, "depth": 2, "vocab": 64}
EXPERTS = {"routing": Routing(experts=16, chosen=4, normalise=True), "expert_width": 64}


def windowed(mlp_width):
    base = qwen2_5_vl.FAMILY.sizes["3b"]
    return qwen2_5_vl.Config(
        vision=replace(base.vision, width=96, mlp_width=mlp_width, heads=2, depth=4, full=(1,)),
        language=replace(base.language, mlp_width=1008, section=(4, 6, 6), **TEXT),
    )


def stacked(mlp_width, **experts):
    base = qwen3_vl.FAMILY.sizes["8b"]
    return qwen3_vl.Config(
        vision=replace(base.vision, width=96, mlp_width=mlp_width, heads=2, depth=4, inner=(0, 1)),
        language=replace(base.language, deep=2, mlp_width=600, section=(6, 5, 5), **TEXT, **experts),
    )


CASES = {
    "2.5": (qwen2_5_vl, windowed(256), 1176),
    "2.5, narrow MLP": (qwen2_5_vl, windowed(96), 1176),
    "3": (qwen3_vl, stacked(256), 1536),
    "3, narrow MLP": (qwen3_vl, stacked(96), 1536),
    "3, experts": (qwen3_vl, stacked(256, **EXPERTS), 1536),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_at_work_is_what_planning_says(case, dtype):
    """Within 2 %; the worst that was measured is 0.7 %. Experts need up to 10 % less, by how tokens are spread."""
    module, config, values = CASES[case]
    network = module.FAMILY.build(config).to(dtype).eval().requires_grad_(False)
    batch = replace(one_image(side=64, text=200), patches=np.zeros((64**2, values), np.float32))
    tokens, item = len(batch.tokens), dtype.itemsize
    with torch.inference_mode():
        with Peak() as tower:
            visual = network.see(batch)
        with Peak() as decoder:
            cache = network.language.new_cache(1, capacity=tokens)
            x = network.embed(batch, visual)
            added = network.deepen(batch, visual)
            starts = batch.starts.tolist()
            network.language(x, torch.from_numpy(batch.positions), starts, cache=cache, deep=added)
    # Views of weights are taken for new.
    seen = [network.vision.patch.weight, *([network.vision.positions] if case[0] == "3" and item == 4 else [])]
    said = [p for n, p in network.language.named_parameters() if ".experts." in n]
    weights = sum(p.nbytes for p in seen)
    assert tower.peak - batch.patches.nbytes - weights == pytest.approx(config.vision.work_bytes(64**2, item), rel=0.02)
    held = config.language.cache_values * tokens * item + visual.nbytes + sum(p.nbytes for p in said)
    share = (decoder.peak - held) / config.language.work_bytes(tokens, item)
    # Kernels for bfloat16 write over what they read: up to 26 % less than planned, which is right without them.
    assert (0.7 if item == 2 else 0.9 if "experts" in case else 0.98) <= share <= 1.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    helper.write_processing(folder)
    values = qwen3_vl.to_published(qwen3_vl.FAMILY.sizes["tiny"]) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(to_json(values))
    return folder


def test_planned_tokens_of_videos_are_exact(folder):
    """Stamps and markers of every step are among them. The small vocabulary has no " seconds" in one piece."""
    family = qwen3_vl.FAMILY
    config = family.from_published(json.loads((folder / "config.json").read_text()))
    processor = Processor.from_folder(folder, family.processing(config), context_tokens=None)
    planner, text = Planner(folder), processor.count("x").tokens
    pieces = len(processor.tokenizer.encode_text(" seconds"))
    for seconds, fps, options in (
        (0.1, 30.0, {}),
        (7.3, 24.0, {}),
        (130.0, 29.97, {"max_frames": 200}),
        (9.0, 1.0, {}),
    ):
        video = VideoShape(width=320, height=200, seconds=seconds, fps=fps)
        counted = processor.count("x", videos=[video], images=[(99, 77)], **options)
        request = Request(videos=[video], images=[(99, 77)], text_tokens=text, knobs=Knobs(**options))
        plan = planner.plan(request)
        assert plan.prompt_tokens == counted.tokens - (pieces - 1) * counted.media[1].grid[0]
        assert plan.media == counted.media
