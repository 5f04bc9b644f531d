"""`foveal bench`: what its figures are made of. No test depends on how fast anything is."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal.cli.main import main
from foveal.core.errors import InputError
from foveal.engine.bench import roofs
from foveal.engine.bench.phases import BenchOptions, Timing, bench
from foveal.engine.bench.plot import grown, plot, rounded_up
from foveal.engine.bench.roofs import Roofs, measure_roofs
from foveal.engine.bench.work import Estimate, Work
from foveal.families.describe import families
from foveal.families.stand_in import write_random

QUICK = BenchOptions(
    pictures=((80, 60), (120, 90)),
    image_px=56,
    text_tokens=8,
    prompt_tokens=32,
    requests=(1, 3),
    contexts=(16, 48, 10**6),
    decode_tokens=3,
    repeats=2,
)


@pytest.fixture(scope="module")
def report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofs, "READ_BYTES", 2**24)
        return bench(foveal.load(), QUICK, name="nano")


def test_every_phase_is_measured(report):
    assert [t.phase for t in report.timings] == (
        ["preprocess"] * 2 + ["vision", "prefill"] + ["decode"] * 4 + ["first token"] * 2
    )
    for timing in report.timings:
        assert 0 < timing.low <= timing.seconds <= timing.high
        assert timing.rate == timing.amount / timing.seconds
    assert report.peak_bytes >= report.loaded_bytes > 0
    assert [c for c, _ in grown(report.timings)] == [16, 48]  # the third does not fit


def test_the_roof_that_binds_is_the_slower_one(report):
    for timing in report.timings:
        if timing.roof is None:
            assert timing.phase in ("preprocess", "first token")
            continue
        times = {
            "memory": timing.read_bytes / report.roofs.read_bytes_s,
            "products": timing.flop / report.roofs.product_flop_s,
        }
        assert timing.roof == max(times, key=times.get)
        assert timing.bound_s == max(times.values())
        assert timing.share == timing.bound_s / timing.seconds
    assert Work(read_bytes=8.0, flop=1.0).bound(Roofs(read_bytes_s=2.0, product_flop_s=1.0)) == ("memory", 4.0)
    assert Work(read_bytes=1.0, flop=9.0).bound(Roofs(read_bytes_s=2.0, product_flop_s=1.0)) == ("products", 9.0)


def test_report_and_plot(report, tmp_path):
    assert json.loads(json.dumps(report.record()))["model"] == "nano"
    path = tmp_path / "new" / "bench.png"
    plot(report, path)
    with Image.open(path) as drawn:
        pixels = np.asarray(drawn)
    for colour in ((30, 90, 200), (200, 110, 30)):
        bound = any(t.roof == ("memory" if colour[2] == 200 else "products") for t in report.timings)
        assert (pixels == colour).all(-1).any() or not bound


def test_roofs_are_what_was_done_a_second():
    found = measure_roofs(torch.device("cpu"), torch.float32, read_bytes=2**22)
    assert found.read_bytes_s > 0
    assert found.product_flop_s > 0


def test_work_of_a_published_size():
    """Qwen2-VL-2B: 1.5437 billion weights in the language model, of which 233 million are the table that is also the
    head; 28 layers with 2 x 256 cached values."""
    family = families()["qwen2_vl"]
    estimate = Estimate(family, family.size("2b"), weight_bytes=2.0, tower_bytes=2.0, cache_item=2)
    token = estimate.decode(1, 0)
    assert token.read_bytes == pytest.approx(3.087e9, rel=1e-3)
    assert token.flop == pytest.approx(3.087e9, rel=1e-3)
    longer = estimate.decode(1, 1000)
    assert longer.read_bytes - token.read_bytes == 28 * 2 * 256 * 2 * 1000
    assert longer.flop - token.flop == 28 * 12 * 128 * 2 * 2 * 1000
    prompt = estimate.prefill(512)
    assert prompt.flop == pytest.approx(
        2 * 1.3104e9 * 512 + 2 * 151936 * 1536 + 28 * 12 * 128 * 4 * 512 * 513 / 2, rel=2e-3
    )
    half = Estimate(family, family.size("2b"), weight_bytes=0.5, tower_bytes=2.0, cache_item=2)
    assert half.decode(1, 0).read_bytes == token.read_bytes / 4


@pytest.mark.parametrize("name", ["deepseek_vl", "deepseek_vl2", "qwen2_5_vl", "qwen3_vl", "qwen_vl"])
def test_work_of_every_family(name, tmp_path):
    """A checkpoint with random weights opens, is seen, and its experts count as far as tokens reach them."""
    family = families()[name]
    write_random(tmp_path / "model", family, "tiny", dtype="float32")
    model = foveal.load(tmp_path / "model")
    estimate = Estimate(model.family, model.config, weight_bytes=4.0, tower_bytes=4.0, cache_item=4)
    picture = np.zeros((60, 60, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]
    packed = model.process([{"role": "user", "content": content}])
    with torch.inference_mode():
        assert len(model.network.see(packed)) == sum(m.tokens for m in packed.media)
    vision = estimate.vision(packed)
    assert vision.flop > 0
    one, many = estimate.decode(1, 10), estimate.decode(64, 10)
    assert many.flop == pytest.approx(64 * one.flop)
    grows = many.read_bytes - 64 * 10 * model.config.language.cache_values * 4 > one.read_bytes
    assert grows == (name == "deepseek_vl2")


def test_options_that_make_no_sense():
    with pytest.raises(InputError, match="repeats is 0"):
        BenchOptions(repeats=0)
    with pytest.raises(InputError, match="at least 1"):
        BenchOptions(requests=(1, 0))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(roofs, "READ_BYTES", 2**24)
    plotted = tmp_path / "b.png"
    words = ["bench", "qwen2_vl/tiny", "--dtype", "float32", "--image", "56", "--prompt", "24", "--requests", "2"]
    words += ["--context", "0", "--repeats", "1"]
    assert main([*words, "--json", "--plot", str(plotted)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "qwen2_vl/tiny"
    assert found["dtype"] == "float32"
    assert [t["phase"] for t in found["timings"]].count("decode") == 1
    assert plotted.read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--quantize", "int8"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("qwen2_vl/tiny: float32 with int8 on ")
    assert "of its roof" in page
    assert "first token" in page


def test_rounded_weights_are_counted_as_they_lie(capsys, monkeypatch):
    """Fewer bytes to read under the memory roof, and the page says what was measured."""
    monkeypatch.setattr(roofs, "READ_BYTES", 2**24)
    words = ["bench", "qwen2_vl/tiny", "--dtype", "float32", "--image", "56", "--prompt", "24", "--requests", "1"]
    words += ["--context", "0", "--repeats", "1", "--json"]
    found = []
    for more in ([], ["--quantize", "int8"]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    full, rounded = (next(t for t in f["timings"] if t["phase"] == "decode")["read_bytes"] for f in found)
    assert found[1]["dtype"] == "float32 with int8"
    assert full / 4 < rounded < full / 2  # a byte and its scale instead of four


def test_what_the_command_refuses(capsys, tmp_path):
    assert main(["bench", "qwen2_vl/3b"]) == 2
    assert "no size '3b'" in capsys.readouterr().err
    assert main(["bench", "--plot", str(tmp_path / "b.jpg")]) == 2
    assert "no PNG" in capsys.readouterr().err


def test_a_timing_without_a_roof_has_no_share():
    timing = Timing(phase="p", detail="d", seconds=2.0, low=1.0, high=3.0, amount=4.0, unit="token")
    assert timing.rate == 2.0
    assert timing.share is None


@pytest.mark.parametrize(("value", "axis"), [(0.31, 0.4), (1.0, 1.0), (24.2, 40.0), (61.0, 80.0), (99.0, 100.0)])
def test_axes_end_at_short_numbers(value, axis):
    assert rounded_up(value) == pytest.approx(axis)
