"""Checkpoints of other layouts become official folders with the same numbers, or nothing is written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import foveal
from foveal.core.errors import ConfigError, FovealError, HubError, InputError, WeightsError
from foveal.families.convert import convert
from foveal.vision.resnet_config import ResNetConfig
from tests.helpers import checkpoints, clip, flax, siglip, vit
from tests.helpers.pictures import odd_pictures

PICTURES = odd_pictures()[6:10]


def close(ours, expected):
    # Worst seen: 9.9e-7, on values up to 2.3.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def logits(oracle, folder):
    """What transformers says, with the processor settings that were written."""
    from transformers import AutoImageProcessor

    values = AutoImageProcessor.from_pretrained(folder, backend="pil")(PICTURES, return_tensors="pt")
    with torch.no_grad():
        return oracle(**values)


@pytest.mark.parametrize("form", ["old", "new", "stacked", "prefixed", "positions before the class token"])
def test_the_authors_vit(tmp_path, form):
    oracle = vit.oracle(seed=3)
    late = form.startswith("positions")
    if late:
        with torch.no_grad():
            oracle.vit.embeddings.position_embeddings[:, 0] = 0
    arrays = flax.vit(oracle, old=form in ("old", "prefixed"))
    if late:
        arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    if form == "stacked":
        arrays = flax.stacked(arrays)
    source = flax.write(tmp_path / "vit.npz", arrays, "opt/target/" if form == "prefixed" else "")
    done = convert(source, tmp_path / "out")
    assert (done.family, done.layout, done.dtype) == ("vit", "big_vision", "F32")
    assert "the configuration was read off the shapes of the weights" in done.notes
    model = foveal.load(tmp_path / "out", device="cpu")
    assert model.labels == tuple(f"LABEL_{n}" for n in range(7))
    ours, _ = model.forward(model.process(PICTURES))
    close(ours, logits(oracle, tmp_path / "out").logits)
    # Every value, and transformers opens the folder.
    again, info = type(oracle).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for (name, one), (_, two) in zip(oracle.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_vit_of_21k_classes_loses_its_head_and_says_so(tmp_path):
    oracle = vit.oracle(seed=4, bare=True)
    done = convert(flax.write(tmp_path / "vit.npz", flax.vit(oracle)), tmp_path / "out")
    assert sum("left out: head." in note for note in done.notes) == 2
    model = foveal.load(tmp_path / "out", device="cpu")
    assert model.labels == ()
    close(model.forward(model.process(PICTURES))[0], logits(oracle, tmp_path / "out").pooler_output)


def test_labels_come_from_the_files_beside(tmp_path):
    oracle = vit.oracle(seed=5)
    files = vit.write(oracle, tmp_path / "files", image_std=[0.25] * 3)
    (files / "model.safetensors").unlink()
    done = convert(flax.write(tmp_path / "vit.npz", flax.vit(oracle)), tmp_path / "out", files=files)
    assert done.notes == ()
    model = foveal.load(tmp_path / "out", device="cpu")
    assert model.labels == vit.LABELS
    assert model.processor.processing.vision.normalize.std == (0.25,) * 3
    with pytest.raises(WeightsError, match="does not fit the model"):
        config = json.loads((files / "config.json").read_text())
        (files / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
        convert(tmp_path / "vit.npz", tmp_path / "other", files=files)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("form", ["plain", "stacked", "bfloat16"])
def test_the_authors_siglip(tmp_path, form):
    oracle = siglip.oracle(seed=6)
    files = siglip.write(oracle, tmp_path / "files")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        (files / name).unlink()
    arrays = flax.siglip(oracle)
    if form == "stacked":
        arrays = flax.stacked(arrays)
    if form == "bfloat16":
        arrays = flax.half(arrays)
        oracle = oracle.bfloat16().float()
    done = convert(flax.write(tmp_path / "s.npz", arrays, "params/"), tmp_path / "out", files=files)
    assert (done.family, done.layout, done.dtype) == ("siglip", "big_vision", "BF16" if form == "bfloat16" else "F32")
    model = foveal.load(tmp_path / "out", dtype="float32", device="cpu")
    texts = ["a photo of a cat", "two dogs"]
    ids = torch.tensor([model.processor.captions.encode(text) for text in texts])
    from transformers import AutoImageProcessor

    values = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")(PICTURES, return_tensors="pt")
    with torch.no_grad():
        close(model.similarity(PICTURES, texts), oracle(**values, input_ids=ids).logits_per_image)


@pytest.mark.parametrize("kind", ["original", "resnet"])
def test_openais_archive(tmp_path, kind):
    """Half precision beside float32, sizes beside the weights; the vocabulary comes from another folder."""
    from foveal.families.clip import FAMILY, guess
    from foveal.families.load import name_map, random_network
    from foveal.weights.write import save

    files = clip.write(clip.oracle(seed=7), tmp_path / "files")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "processor_config.json"):
        (files / name).unlink(missing_ok=True)
    tiny = FAMILY.size("tiny")
    text = replace(tiny.text, width=64, heads=1, mlp_width=256, vocab=610, context=clip.CONTEXT)
    if kind == "original":
        vision = replace(tiny.vision, width=128, heads=2, mlp_width=512, eps=1e-5)
        config = replace(tiny, vision=vision, text=text)
    else:
        config = replace(
            tiny, vision=ResNetConfig(width=8, stages=(1, 2, 1, 1), heads=4, side_px=64), text=text, side_px=64
        )
    network = random_network(FAMILY, config, seed=1, std=0.1)
    save(network, tmp_path / "raw", name_map(FAMILY, kind))
    tensors = load_file(tmp_path / "raw/model.safetensors")
    tensors = {n: t.half() if t.ndim == 2 and "embedding" not in n else t for n, t in tensors.items()}
    sizes = {"input_resolution": config.side_px, "context_length": text.context, "vocab_size": 610}
    torch.save(tensors, tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="do not say which activation"):
        convert(tmp_path / "clip.pt", tmp_path / "out", files=files)
    assert not (tmp_path / "out").exists()
    torch.save(tensors | {name: torch.tensor(n) for name, n in sizes.items()}, tmp_path / "clip.pt")
    done = convert(tmp_path / "clip.pt", tmp_path / "out", files=files)
    assert (done.family, done.layout, done.dtype) == ("clip", kind, "F32")
    assert any("stored as F16 and F32; written as float32" in note for note in done.notes)
    model = foveal.load(tmp_path / "out", device="cpu")
    assert model.config == config
    assert guess(kind, {n: tuple(t.shape) for n, t in tensors.items()} | {"input_resolution": ()}) == config
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_open_clip_with_its_configuration(tmp_path, ending):
    oracle = clip.oracle(seed=8)
    files = clip.write(oracle, tmp_path / "files")
    (files / "model.safetensors").unlink()
    tensors, source = clip.original(oracle.state_dict()), tmp_path / f"clip.{ending}"
    if ending == "pt":
        torch.save({"state_dict": tensors}, source)
    else:
        save_file(tensors, source)
    done = convert(source, tmp_path / "out", files=files)
    assert (done.family, done.layout) == ("clip", "original")
    reference = foveal.load(clip.write(oracle, tmp_path / "theirs"), device="cpu")
    ours = foveal.load(tmp_path / "out", device="cpu")
    assert torch.equal(ours.embed_images(PICTURES), reference.embed_images(PICTURES))
    assert torch.equal(ours.embed_text(["a cat"]), reference.embed_text(["a cat"]))


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_files_of_a_language_model(tmp_path, shards):
    oracle = checkpoints.oracle(seed=9)
    official = checkpoints.write(oracle, tmp_path / "a")
    tensors = load_file(official / "model.safetensors")
    folder = tmp_path / "b"
    shutil.copytree(official, folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        where = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(names)}
        for file in set(where.values()):
            torch.save({n: tensors[n] for n in names if where[n] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    done = convert(folder, tmp_path / "out")
    assert (done.layout, done.tensors) == ("official", len(tensors))
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[n], tensors[n]) for n in names)
    assert foveal.load(tmp_path / "out", device="cpu").generation == foveal.load(official, device="cpu").generation
    half = convert(folder, tmp_path / "out", dtype="bfloat16")  # replaces what it wrote
    assert half.dtype == "BF16"


def test_a_model_of_the_hub_without_safetensors_is_asked_for_once_more(tmp_path, monkeypatch):
    import huggingface_hub

    folder = vit.write(vit.oracle(), tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    asked = []

    def download(**options):
        asked.append("*.bin" in options["allow_patterns"])
        if asked[-1]:
            torch.save(tensors, folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    done = convert("owner/name", tmp_path / "out")
    assert asked == [False, True]
    assert (done.tensors, done.notes) == (len(tensors), ("read 1 .bin file of PyTorch; nothing in them was run",))


def test_mixed_types_are_written_as_float32(tmp_path):
    oracle = vit.oracle(seed=1)
    folder = vit.write(oracle, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    mixed = {n: t.half() if n.endswith("dense.weight") else t for n, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    done = convert(folder, tmp_path / "out")
    assert done.dtype == "F32"
    assert "stored as F16 and F32; written as float32" in done.notes[0]
    assert convert(folder, tmp_path / "half", dtype="fp16").dtype == "F16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": None}, "pools without a class token"),
        ({"Transformer/posembed_input/pos_embedding": None}, "has no learned positions"),
        ({"head/kernel": None, "head/bias": None}, "neither a head nor pre_logits"),
        ({"Transformer/encoderblock_1/LayerNorm_0/scale": None}, "tensors are missing"),
        ({"extra/kernel": np.zeros((2, 2), np.float32)}, r"knows all but 1 of them \(extra\.kernel\)"),
        ({"head/bias": np.zeros(3, np.float32)}, r"a\.npz does not fit the model: head\.kernel has shape"),
    ],
)
def test_what_has_no_published_form(tmp_path, change, message):
    arrays = {name: a for name, a in (flax.vit(vit.oracle()) | change).items() if a is not None}
    with pytest.raises(FovealError, match=message):
        convert(flax.write(tmp_path / "a.npz", arrays), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_names_that_cannot_be_used(tmp_path):
    folder = vit.write(vit.oracle(), tmp_path / "a")
    with pytest.raises(InputError, match="is the source itself"):
        convert(folder, folder)
    with pytest.raises(InputError, match="does not exist"):
        convert(tmp_path / "none.npz", tmp_path / "out")
    with pytest.raises(InputError, match=r"is a \.json file"):
        convert(folder / "config.json", tmp_path / "out")
    with pytest.raises(InputError, match="is not a folder"):
        convert(folder, tmp_path / "out", files=tmp_path / "none")
    with pytest.raises(HubError, match=r"also takes files: \.npz"):
        convert("nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="dtype 'int3' is unknown"):
        convert(folder, tmp_path / "out", dtype="int3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(WeightsError, match=r"thesis\.txt, which is no part of a checkpoint"):
        convert(folder, tmp_path / "full")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        convert(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match=r"holds neither model\.safetensors nor"):
        convert(tmp_path / "empty", tmp_path / "out")
