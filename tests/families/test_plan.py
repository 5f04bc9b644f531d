"""Plans made from sizes alone are what the model then really sees and holds."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.core.errors import ConfigError, InputError
from foveal.families.describe import describe
from foveal.families.plan import Planner, Request, cache_room
from foveal.processing.intake import Knobs, VideoShape
from tests.helpers import checkpoints

PUBLISHED = Path(__file__).parents[1] / "data_files/published"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small files of a tiny model and no weights."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoints.write(checkpoints.oracle(), folder)
    (folder / "model.safetensors").unlink()
    return folder


def test_the_published_2b():
    plan = Planner(PUBLISHED / "Qwen2-VL-2B-Instruct").plan(Request(images=[(4032, 3024)], answer_tokens=64))
    assert plan.visual_tokens == 15_552  # 144 x 108 tokens of 28 x 28 px
    assert plan.prompt_tokens == 15_554
    assert plan.context_tokens == 32_768
    assert plan.weights_bytes == 2 * 2_208_985_600
    assert plan.patches_bytes == 4 * 4 * 15_552 * 1176
    token = 2 * (2 * 28 * 2 * 128)
    assert plan.cache_bytes == token * 489 * 32  # in blocks of 32: 15,554 tokens and 63 of the answer's 64
    held = plan.weights_bytes + plan.patches_bytes
    assert plan.peak_bytes == held + plan.prefill_bytes + token * 487 * 32  # while the prompt is read


def test_pictures_take_the_tokens_that_were_planned(tiny: Path):
    processor, planner = describe(tiny).processor, Planner(tiny)
    chosen = random.Random(0)
    for _ in range(12):
        sizes = [(chosen.randint(1, 700), chosen.randint(4, 700)) for _ in range(chosen.randint(1, 3))]
        knobs = Knobs(max_pixels=chosen.choice([None, 40_000, 90_000]), min_pixels=chosen.choice([None, 3136, 20_000]))
        plan = planner.plan(Request(images=sizes, knobs=knobs))
        content = [{"type": "image", "image": Image.new("RGB", size)} for size in sizes]
        packed = processor.process(
            [{"role": "user", "content": content}], min_pixels=knobs.min_pixels, max_pixels=knobs.max_pixels
        )
        assert [m.grid for m in plan.media] == [m.grid for m in packed.media]
        assert [m.view for m in plan.media] == [m.view for m in packed.media]
        assert plan.visual_tokens == sum(run.length for run in packed.runs)
        assert plan.patches_bytes == packed.patches.nbytes
        markers = np.isin(packed.tokens, [processor.tokenizer.special(f"<|vision_{end}|>") for end in ("start", "end")])
        assert plan.prompt_tokens - plan.visual_tokens == markers.sum()


def test_videos_are_planned_as_the_processor_counts_them(tiny: Path):
    processor, planner = describe(tiny).processor, Planner(tiny)
    chosen = random.Random(1)
    for _ in range(50):
        video = VideoShape(
            width=chosen.randint(30, 2000),
            height=chosen.randint(30, 2000),
            seconds=chosen.uniform(0.1, 900),
            fps=chosen.choice([24.0, 25.0, 29.97, 30.0, 60.0]),
        )
        options = chosen.choice([{}, {"fps": 1.0}, {"max_frames": 8}, {"max_pixels": 150_000}])
        plan = planner.plan(Request(videos=[video], knobs=Knobs(**options)))
        assert plan.media == processor.count(videos=[video], **options).media


def test_the_fitting_size_is_the_largest(tiny: Path):
    for planner in (Planner(PUBLISHED / "Qwen2-VL-2B-Instruct"), Planner(tiny)):
        weights = planner.plan(Request()).weights_bytes
        chosen = random.Random(2)
        for _ in range(20):
            request = Request(
                images=[(chosen.randint(500, 5000), chosen.randint(500, 5000)) for _ in range(2)], answer_tokens=64
            )
            memory = weights + int(10 ** chosen.uniform(6, 9.7))
            whole = planner.plan(request)
            found = planner.fit(request, memory_bytes=memory)
            if found is None:
                least = replace(request, knobs=Knobs(max_pixels=planner.vision.resize.min_px))
                least_plan = planner.plan(least)
                assert least_plan.peak_bytes > memory or not least_plan.fits_context
                continue
            max_px, plan = found
            assert plan.fits_context
            assert plan.peak_bytes <= memory
            assert plan == planner.plan(replace(request, knobs=Knobs(max_pixels=max_px)))
            if plan.media != whole.media:
                more = planner.plan(replace(request, knobs=Knobs(max_pixels=max_px + 1)))
                assert more.peak_bytes > memory or not more.fits_context


def test_the_context_bounds_the_size_without_a_memory():
    planner = Planner(PUBLISHED / "Qwen2-VL-2B-Instruct")
    request = Request(images=[(4000, 3000)] * 4)
    assert not planner.plan(request).fits_context
    found = planner.fit(request)
    assert found is not None
    assert 31_000 < found[1].prompt_tokens <= 32_768 - 512
    assert planner.fit(Request(images=[(100, 100)] * 9000)) is None


@pytest.mark.parametrize("answer", [1, 21, 23, 300])
def test_the_cache_is_as_large_as_planned(answer: int, tmp_path: Path):
    """Runs the engine and looks at what its cache holds before the end."""
    vlm = foveal.load(checkpoints.write(checkpoints.oracle(), tmp_path), device="cpu")
    engine = foveal.Engine(vlm)
    batch = vlm.process("word " * 40)
    prompt = len(batch.tokens)
    assert prompt == 140
    engine.add(batch, foveal.Sampling(max_tokens=answer, ignore_eos=True))
    held = [0]
    while engine.busy:
        engine.step()
        held.append(engine.stats().cache_bytes)
    if answer == 1:
        return  # it ends in the step that begins it
    token = 4 * vlm.config.language.cache_values
    assert held[-2] == max(held) == token * cache_room(prompt, answer)
    assert held[-1] == token * ((prompt + answer - 1) // 32 * 32)  # whole blocks are kept for later


def test_what_is_not_known_is_said(tiny: Path, tmp_path: Path):
    with pytest.raises(InputError, match="dtype 'int3' is unknown"):
        Planner(tiny, dtype="int3")
    with pytest.raises(InputError, match="answer_tokens is -1"):
        Request(answer_tokens=-1)
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config["text_config"]):
        section.pop("dtype", None)
        section.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not state the type of the weights"):
        Planner(folder)
    assert Planner(folder, dtype="fp16").plan(Request()).weights_bytes == 2 * 210_304


def test_planning_counts_what_torch_builds(tiny: Path):
    planner = Planner(tiny)
    with torch.device("meta"):
        network = planner.family.build(planner.config)
    assert planner.plan(Request()).weights_bytes == sum(4 * p.numel() for p in network.parameters())
