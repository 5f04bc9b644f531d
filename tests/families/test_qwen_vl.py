"""Qwen-VL: released sizes, configurations, checkpoints of our own, and one answer however it is computed."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import foveal
from foveal.core.errors import ConfigError, WeightsError
from foveal.families.describe import family_of
from foveal.families.plan import Planner, Request
from foveal.families.qwen_vl import FAMILY, SIDE, Config, from_published, to_published
from foveal.families.qwen_vl_network import stretched_rotation
from foveal.nn.rope import frequencies
from foveal.weights.names import NameMap
from tests.helpers import layouts, qwen_vl

DATA = Path(__file__).parent.parent / "data_files/published/Qwen-VL-Chat"


def published(**changes):
    return json.loads((DATA / "config.json").read_text()) | changes


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return foveal.load(
        qwen_vl.write(tmp_path_factory.mktemp("qwen_vl") / "tiny", seed=3), dtype="float32", device="cpu"
    )


def test_the_released_size_has_its_parameters_and_names():
    official = qwen_vl.recorded("official_full_size.json")
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.size("chat"))
    assert sum(p.numel() for p in network.parameters()) == official["n_parameters"] == 9_656_935_168
    names = NameMap.parse(FAMILY.map_text(), where="qwen_vl.map")
    assert sorted(names.published(n) for n in network.state_dict()) == sorted(official["parameter_names"])
    assert len(official["parameter_names"]) == 853


@pytest.mark.parametrize("size", FAMILY.sizes)
def test_parameters_are_those_of_the_built_network(size):
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.size(size))
    built = {part: sum(p.numel() for p in m.parameters()) for part, m in network.named_children()}
    assert FAMILY.parameters(FAMILY.size(size)) == built


def test_the_published_configuration_is_the_declared_size(caplog):
    with caplog.at_level(logging.WARNING):
        assert from_published(published()) == FAMILY.size("chat") == FAMILY.size("base")
        assert from_published(qwen_vl.recorded("official_full_size.json")["config"]) == FAMILY.size("chat")
    assert not caplog.records
    written = to_published(FAMILY.size("chat"))
    kept = {k: v for k, v in published().items() if k in written}
    assert written == kept | {"rotary_emb_base": 10000.0}
    assert family_of(published()) is FAMILY


@pytest.mark.parametrize(("width", "mlp_width"), [(1664, 8192), (48, 236), (32, 64), (1000, 1), (1024, 4095), (7, 22)])
def test_writing_and_reading_keep_the_configuration(width, mlp_width, caplog):
    tiny = FAMILY.size("tiny")
    config = replace(tiny, vision=replace(tiny.vision, width=width, mlp_width=mlp_width, heads=1))
    with caplog.at_level(logging.WARNING):
        assert from_published(json.loads(json.dumps(to_published(config)))) == config
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual": None}, "'visual' is missing"),
        ({"no_bias": False}, "no_bias is False"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attn_dropout_prob": 0.1}, "attn_dropout_prob is 0.1"),
        ({"intermediate_size": 22017}, "22017 is odd"),
        ({"kv_channels": 64}, "do not both make the width 4096"),
        ({"rotary_pct": 2.0}, "rotary section"),
        ({"visual": published()["visual"] | {"output_dim": 1024}}, "output_dim is 1024"),
        ({"visual": published()["visual"] | {"n_queries": 64}}, "n_queries is 64"),
        ({"visual": published()["visual"] | {"image_size": 450}}, "450 px are not whole patches"),
        ({"hidden_size": 4160, "kv_channels": 130, "visual": published()["visual"] | {"output_dim": 4160}}, "of 128"),
    ],
)
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_published(published(**change))


def test_an_unknown_key_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        from_published(published(quantisation=3, visual=published()["visual"] | {"colour": 1}))
    assert "'quantisation' is not known" in caplog.text
    assert "'colour' is not known" in caplog.text


def test_saving_and_loading_keep_every_bit(vlm, tmp_path):
    vlm.save(tmp_path / "again", shard_bytes=400_000)
    again = foveal.load(tmp_path / "again")
    for (name, one), (_, two) in zip(vlm.network.named_parameters(), again.network.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert {p.name for p in (tmp_path / "again").glob("*.tiktoken")} == {"qwen.tiktoken"}
    assert again.processor.files() == vlm.processor.files()
    batch = vlm.process(conversation(np.random.default_rng(0)))
    assert torch.equal(again.forward(batch).logits, vlm.forward(batch).logits)
    # The recorded checkpoint keeps its names, its config.json and the vocabulary's bytes.
    golden = qwen_vl.model()
    golden.save(tmp_path / "golden")
    for name in ("qwen.tiktoken", "tokenizer_config.json"):
        assert (tmp_path / "golden" / name).read_bytes() == (qwen_vl.GOLDEN / name).read_bytes()
    first = json.loads((qwen_vl.GOLDEN / "config.json").read_text())
    second = json.loads((tmp_path / "golden/config.json").read_text())
    assert from_published(first) == from_published(second)
    from safetensors.torch import load_file

    before, after = (load_file(p / "model.safetensors") for p in (qwen_vl.GOLDEN, tmp_path / "golden"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_tables_of_older_copies_are_passed_over_and_others_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = qwen_vl.write(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    extra = {
        "transformer.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.1.attn.masked_bias": torch.ones(1),
        "transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
    }
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    foveal.load(folder)
    save_file(tensors | {"transformer.h.0.attn.c_proj.bias": torch.ones(4)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"c_proj\.bias"):
        foveal.load(folder)


def test_the_id_of_the_picture_tag_has_to_agree(tmp_path):
    folder = qwen_vl.write(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["visual"]["image_start_id"] = 500
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="image_start_id = 500, the tokenizer says 502"):
        foveal.load(folder)


def conversation(rng, media=2):
    return layouts.conversation(rng, media=media, videos=False)


def longer(batch, ids):
    """The batch of one sequence with `ids` after its prompt, whose length stays that of the prompt."""
    count = len(batch.tokens) + len(ids)
    positions = np.stack((np.arange(count), np.full(count, len(batch.tokens))))
    tokens = np.concatenate([batch.tokens, np.array(ids, np.int64)])
    return replace(batch, tokens=tokens, positions=positions, starts=np.array([0, count]))


@pytest.mark.parametrize("group", range(2))
def test_alone_equals_batched_equals_chunked_equals_cached(vlm, group):
    compare(vlm, group)


@pytest.mark.slow
@pytest.mark.parametrize("group", range(2, 40))
def test_many_cases(vlm, group):
    compare(vlm, group)


def compare(vlm, group):
    """Prompts of 30 to 900 tokens; the tiny model was "trained" on 300, so most pass the bounds of NTK and logn."""
    rng = np.random.default_rng(group)
    alone = [vlm.process(conversation(rng, media=1)) for _ in range(3)]
    packed = foveal.join(alone)
    whole = vlm.forward(packed).logits
    chunk = int(rng.integers(5, 400))
    options = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    together = vlm.generate(packed, **options)
    assert vlm.generate(packed, chunk=chunk, **options) == together
    for index, (batch, ids) in enumerate(zip(alone, together, strict=True)):
        own = vlm.forward(batch).logits
        # Worst seen: 4.1e-6.
        torch.testing.assert_close(whole[packed.starts[index] : packed.starts[index + 1]], own, rtol=0, atol=1e-5)
        assert vlm.generate(batch, **options) == [ids]
        with torch.inference_mode():
            cache = vlm.network.language.new_cache(1)
            rows = [vlm.network(batch, cache=cache).logits[-1]]
            rows += [vlm.network.step(batch, [0], [token], cache)[0] for token in ids]
        at_once = vlm.forward(longer(batch, ids)).logits[len(batch.tokens) - 1 :]
        torch.testing.assert_close(torch.stack(rows), at_once, rtol=0, atol=1e-5)


def test_bases_and_factors_follow_the_prompt():
    """alpha = 2 ** ceil(log2(L / c) + 1) - 1 and log_c(i), by the published formula in doubles."""
    config = FAMILY.size("chat").language
    lengths = [1, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192]
    places = [length - 1 for length in lengths]
    rotation = stretched_rotation(config, torch.tensor([places, lengths]))
    for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
        alpha = max(2 ** math.ceil(math.log2(length / 2048) + 1) - 1, 1)
        turns = frequencies(128, 10000.0 * alpha ** (128 / 126), torch.device("cpu"))
        torch.testing.assert_close(rotation.cos[row, 0, :64], (place * turns).cos(), rtol=0, atol=0)
        factor = math.log(length, 2048) if length > 2048 else 1.0
        assert rotation.scale[row].item() == pytest.approx(factor, rel=1e-6)
    training = stretched_rotation(config, torch.tensor([places, [0] * len(places)]))
    plain = stretched_rotation(replace(config, ntk=False, logn=False), torch.tensor([places, lengths]))
    assert torch.equal(training.cos, plain.cos)
    assert plain.scale is None
    assert torch.equal(training.scale, torch.ones_like(training.scale))


def test_training_mode_turns_both_off(vlm):
    batch = vlm.process(conversation(np.random.default_rng(1)))
    assert len(batch.tokens) > 300
    network, plain = vlm.network, FAMILY.build(without_stretch(vlm.config))
    plain.load_state_dict(network.state_dict())
    expected = plain.eval().requires_grad_(False)(batch).logits
    assert (network(batch).logits - expected).abs().max() > 1e-3
    try:
        torch.testing.assert_close(network.train()(batch).logits, expected, rtol=0, atol=1e-5)
    finally:
        network.eval()


def without_stretch(config: Config) -> Config:
    return replace(config, language=replace(config.language, ntk=False, logn=False))


def test_angles_stay_float32_in_a_model_of_less(vlm):
    rotation = stretched_rotation(vlm.config.language, torch.tensor([[3, 400], [400, 400]])).to(torch.bfloat16)
    assert rotation.cos.dtype == torch.float32
    assert rotation.scale.dtype == torch.bfloat16
    assert rotation.query(torch.ones(2, 4, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_planning_counts_pictures_at_their_one_size(vlm, tmp_path):
    vlm.save(tmp_path / "m")
    planner = Planner(tmp_path / "m")
    plan = planner.plan(Request(images=((4032, 3024), (10, 500)), text_tokens=20))
    assert plan.visual_tokens == 2 * SIDE**2
    assert plan.weights_bytes == 4 * sum(FAMILY.parameters(vlm.config).values())
    assert planner.fit(Request(images=((4032, 3024),))) is None
