"""Qwen-VL beside the recorded outputs of the original code (tests/golden/qwen_vl).

Measured worst differences in float32 are noted beside each tolerance.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.families.qwen_vl import FAMILY
from foveal.nn.embed import resized_positions, sincos_table
from foveal.processing.messages import Message, TextPart
from foveal.processing.picture_prompts import PicturePrompts, to_parts
from foveal.weights.names import NameMap
from tests.helpers import qwen_vl
from tests.helpers.qwen_vl import GOLDEN, packed, recorded

PROMPTS = ("text_only", "one_image", "two_images", "small_gray_image")
PICTURES = {"wide": "wide.png", "strip": "strip.jpg", "tall_alpha": "tall_alpha.png", "gray_small": "gray_small.png"}


@pytest.fixture(scope="module")
def vlm():
    return qwen_vl.model()


def case(name):
    return recorded("cases.json")[name]


def close(ours, theirs, atol):
    torch.testing.assert_close(torch.as_tensor(ours).float(), torch.as_tensor(theirs), rtol=0, atol=atol)


def batch_of(vlm, name):
    """The recorded prompt; one that is given as ids only, as those ids."""
    recorded_case = case(name)
    if recorded_case.get("prompt") is not None:
        return packed(recorded_case["prompt"], vlm)
    if name == "chat_multi_turn":
        return vlm.process(messages_of(recorded_case))
    batch = vlm.process(prompt="x")
    ids = np.array(recorded_case["input_ids"])
    positions, _ = vlm.processor.processing.positions.place(len(ids), ())
    return replace(batch, tokens=ids, positions=positions, starts=np.array([0, len(ids)]))


def messages_of(recorded_case):
    """A recorded history as messages: its pictures and boxes become parts."""
    images = {f"images/{name}": str(GOLDEN / "images" / name) for name in PICTURES.values()}
    messages = [Message(role="system", parts=(TextPart(text=recorded_case["system"]),))]
    pictures = 0
    for question, answer in [*recorded_case["history"], (recorded_case["query"], None)]:
        parts = to_parts(question, images, first=pictures)
        pictures += question.count("<img>")
        messages.append(Message(role="user", parts=tuple(parts)))
        if answer is not None:
            messages.append(Message(role="assistant", parts=tuple(to_parts(answer, images, first=pictures))))
    return messages


@pytest.mark.parametrize("name", [*PROMPTS, "ntk_boundary", "chat_multi_turn"])
def test_ids_logits_and_generation(vlm, name):
    out, theirs, batch = recorded("outputs.npz"), case(name), batch_of(vlm, name)
    assert batch.tokens.tolist() == PicturePrompts(vlm.processor.tokenizer).ours(theirs["input_ids"])
    # Worst seen: 5.7e-5. The recorded float32 itself differs from float64 by up to 6.1e-5.
    close(vlm.forward(batch).logits[out[f"{name}.positions"]], out[f"{name}.logits"], 2e-4)
    ids, rows = decode(vlm, batch, 16)
    assert ids == theirs["generated_ids"]
    close(rows, out[f"{name}.decode_logits"], 2e-4)
    assert vlm.generate(batch, max_tokens=16, temperature=0, ignore_eos=True) == [ids]


@torch.inference_mode()
def decode(vlm, batch, count):
    """Greedy ids, and the scores from which each was chosen."""
    cache = vlm.network.language.new_cache(1)
    rows = vlm.network(batch, cache=cache, at=batch.starts[1:] - 1).logits
    ids, scores = [], []
    for _ in range(count):
        scores.append(rows[0])
        ids.append(int(rows[0].argmax()))
        rows = vlm.network.step(batch, [0], ids[-1:], cache)
    return ids, torch.stack(scores)


@pytest.mark.parametrize("name", ["one_image", "two_images"])
def test_hidden_states(vlm, name):
    out = recorded("outputs.npz")
    kept = vlm.forward(batch_of(vlm, name), keep=("embeddings", "layers.0", "norm")).kept
    places = out[f"{name}.hidden_positions"]
    for number, mine in enumerate(("embeddings", "layers.0", "norm")):
        close(kept[mine][places], out[f"{name}.hidden_{number}"], 2e-4)  # worst seen: 5.1e-5


def test_alpha_is_that_of_the_prefill(vlm):
    """Recomputing the whole sequence at every step would use the alpha of the longer one, from step 8 on."""
    batch, theirs = batch_of(vlm, "ntk_boundary"), case("ntk_boundary")
    ids = []
    for _ in range(16):
        tokens = np.concatenate([batch.tokens, np.array(ids, np.int64)])
        positions, _ = vlm.processor.processing.positions.place(len(tokens), ())
        longer = replace(batch, tokens=tokens, positions=positions, starts=np.array([0, len(tokens)]))
        ids.append(int(vlm.forward(longer).logits[-1].argmax()))
    assert ids == theirs["generated_ids_without_kv_cache"]
    assert ids[:7] == theirs["generated_ids"][:7]
    assert ids[7] != theirs["generated_ids"][7]


def test_an_answer_ends_at_the_stop_words(vlm):
    theirs = case("chat_multi_turn")
    answer = vlm.chat(messages_of(theirs), max_tokens=16)
    assert answer.text == theirs["chat_response"]
    # The original writes end-of-text after the stop word; here the stop word is the last id.
    assert [*answer.ids, vlm.processor.tokenizer.special("<|endoftext|>")] == theirs["generated_ids_with_stop_words"]
    assert answer.finish_reason == "stop"


def test_a_batch_padded_within_the_trained_length(vlm):
    """The original pads at the left; as long as neither NTK nor logn is at work, a row equals itself alone."""
    out, theirs = recorded("outputs.npz"), case("left_pad_batch")
    batches = [batch_of(vlm, row) for row in theirs["rows"]]
    pack = foveal.join(batches)
    logits = vlm.forward(pack).logits
    close(logits[: pack.starts[1]], out["left_pad_batch.logits_row0"], 2e-4)  # worst seen: 6.2e-5
    close(logits[pack.starts[1] :][out["left_pad_batch.row1_positions"]], out["left_pad_batch.logits_row1"], 2e-4)
    assert vlm.generate(pack, max_tokens=16, temperature=0, ignore_eos=True) == theirs["generated_ids"]


def test_a_batch_padded_beyond_the_trained_length(vlm):
    """There the original's alpha and factors are those of the padded row; given the same numbers, so are ours."""
    out, theirs = recorded("outputs.npz"), case("multi_image_batch")
    pack = foveal.join([batch_of(vlm, row) for row in theirs["rows"]])
    length, (_, padding) = theirs["length"], theirs["attention_mask_left_zeros"]
    positions = pack.positions.copy()
    positions[1] = length
    positions[0, pack.starts[1] :] += padding
    padded = replace(pack, positions=positions, deltas=np.array([0, padding]))
    logits = vlm.forward(padded).logits
    first, second = out["multi_image_batch.row0_positions"], out["multi_image_batch.row1_positions"] - padding
    close(logits[first], out["multi_image_batch.logits_row0"], 2e-4)  # worst seen: 5.7e-5
    close(logits[pack.starts[1] :][second], out["multi_image_batch.logits_row1"], 2e-4)
    assert vlm.generate(padded, max_tokens=16, temperature=0, ignore_eos=True) == theirs["generated_ids"]


VARIANTS = {
    "ntk1_logn1": {},
    "ntk1_logn0": {"use_logn_attn": False},
    "ntk0_logn1": {"use_dynamic_ntk": False},
    "ntk0_logn0": {"use_dynamic_ntk": False, "use_logn_attn": False},
    "rotary_pct0.5": {"rotary_pct": 0.5},
    "rotary_emb_base500": {"rotary_emb_base": 500},
    "layer_norm_epsilon1e-2": {"layer_norm_epsilon": 1e-2},
}


@pytest.fixture
def changed(tmp_path):
    """The recorded checkpoint with other settings or tensors."""

    def load(settings=None, tensors=None):
        from safetensors.torch import load_file, save_file

        for path in GOLDEN.iterdir():
            if path.suffix in (".json", ".tiktoken"):
                (tmp_path / path.name).write_bytes(path.read_bytes())
        config = json.loads((GOLDEN / "config.json").read_text()) | (settings or {})
        (tmp_path / "config.json").write_text(json.dumps(config))
        weights = load_file(GOLDEN / "model.safetensors")
        save_file(tensors(weights) if tensors else weights, tmp_path / "model.safetensors")
        return foveal.load(tmp_path, dtype="float32", device="cpu")

    return load


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_of_the_decoder(changed, variant):
    vlm = changed(VARIANTS[variant])
    logits = vlm.forward(batch_of(vlm, "two_images")).logits[-8:]
    close(logits, recorded("outputs.npz")[f"variant.{variant}.last8_logits"], 2e-4)  # worst seen: 5.7e-5


@pytest.mark.parametrize("name", PICTURES)
def test_vision(vlm, name):
    seen, pixels = recorded("vision.npz"), recorded("pixel_values.npz")
    batch = vlm.process(prompt="<img><imgpad></img>", media=[str(GOLDEN / "images" / PICTURES[name])])
    if name in pixels:  # a JPEG may be decoded otherwise elsewhere
        rows = pixels[name].reshape(3, 32, 14, 32, 14).transpose(1, 3, 0, 2, 4).reshape(1024, 588)
        close(batch.patches, rows, 1e-6)  # worst seen: 0
    kept = vlm.forward(batch, keep=("vision.embeddings", "vision", "adapter.attended", "adapter")).kept
    # Worst seen: 3.3e-5, after the resampler. The approximate GELU would be wrong by 1.1e-3.
    close(kept["vision.embeddings"][::16], seen[f"{name}.ln_pre_every16"], 1e-4)
    close(kept["vision"][::16], seen[f"{name}.vit_every16"], 1e-4)
    close(kept["adapter.attended"][::4], seen[f"{name}.resampler_every4"], 1e-4)
    close(kept["adapter"][::4], seen[f"{name}.visual_every4"], 1e-4)
    whole = kept["adapter"].double()
    # Sums of 65,536 numbers whose own deviation is up to 1.9e-5.
    assert whole.sum().item() == pytest.approx(float(seen[f"{name}.visual_sum_f64"]), abs=0.05)
    assert whole.abs().sum().item() == pytest.approx(float(seen[f"{name}.visual_abs_sum_f64"]), abs=0.05)


def test_resized_tables_of_positions(vlm):
    seen, network = recorded("vision.npz"), vlm.network
    tower = resized_positions(network.vision.positions, 16, 32, 32)[::16]
    close(tower, seen["get_abs_pos.vit_table_interpolated_every16"], 1e-6)  # worst seen: 0
    queries = resized_positions(network.adapter.positions, 16, 32, 32)[::16]
    close(queries, seen["get_abs_pos.resampler_table_interpolated_every16"], 1e-6)  # worst seen: 0
    # The stored table is the one that a new model gets.
    close(sincos_table(16, 256), network.adapter.positions, 1e-7)  # worst seen: 0


SMALL = ("conv1.weight", "positional_embedding", "attn_pool.kv_proj.weight", "attn_pool.query")


def test_every_norm_has_its_epsilon(changed):
    """Inputs of all norms are made tiny; 1e-5 instead of 1e-6 anywhere would move the result by about 0.8."""

    def small(weights):
        parts = ("ln_pre.", ".attn.out_proj.", ".mlp.c_proj.")
        return {
            name: tensor * 1e-3
            if name.startswith("transformer.visual.")
            and (name.removeprefix("transformer.visual.") in SMALL or any(p in name for p in parts))
            else tensor
            for name, tensor in weights.items()
        }

    vlm = changed(tensors=small)
    batch = vlm.process(prompt="<img><imgpad></img>", media=[str(GOLDEN / "images/wide.png")])
    visual = vlm.forward(batch, keep=("adapter",)).kept["adapter"][::4]
    close(visual, recorded("vision.npz")["eps_probe.wide.visual_every4"], 2e-4)  # worst seen: 1.2e-6


def taught(vlm, number):
    """One recorded conversation as the fine-tuning script of the release makes it, and its labels."""
    images = {f"images/{name}": str(GOLDEN / "images" / name) for name in PICTURES.values()}
    messages = [
        Message(role=turn["from"], parts=tuple(to_parts(turn["value"], images)))
        for turn in recorded("training.json")["conversations"][number]
    ]
    processor = vlm.processor
    chat = replace(processor.processing.chat, labels="published")
    processing = replace(processor.processing, chat=chat)
    batch = type(processor)(
        tokenizer=processor.tokenizer, processing=processing, context_tokens=processor.context_tokens
    ).process(messages, generate=False)
    labels = np.full(len(batch.tokens), -100)
    for span in batch.spans:
        if span.learned:
            labels[span.start : span.stop] = batch.tokens[span.start : span.stop]
    return batch, labels


@pytest.mark.parametrize("number", [0, 1])
def test_label_masks_of_the_release(vlm, number):
    theirs = recorded("training.json")
    batch, labels = taught(vlm, number)
    length = sum(theirs["attention_mask"][number])
    ids = PicturePrompts(vlm.processor.tokenizer).ours(theirs["input_ids"][number][:length])
    assert batch.tokens.tolist() == ids
    assert labels.tolist() == theirs["labels"][number][:length]
    assert set(theirs["labels"][number][length:]) <= {-100}
    if number == 0:  # the release cuts what is too long, without more ado
        cut = theirs["truncated"]["model_max_length"]
        assert labels[:cut].tolist() == theirs["truncated"]["labels"][0]


def loss_of(network, batch, labels, starts):
    """Cross-entropy of the next token over all labels that are not -100; a sequence's first has no token before it."""
    targets = np.append(labels[1:], -100)
    targets[np.asarray(starts[1:]) - 1] = -100
    return F.cross_entropy(network(batch).logits, torch.from_numpy(targets))


def both(vlm, prompt_length=None):
    pairs = [taught(vlm, number) for number in (0, 1)]
    batch = foveal.join([pair[0] for pair in pairs])
    if prompt_length is not None:
        positions = batch.positions.copy()
        positions[1] = prompt_length
        batch = replace(batch, positions=positions)
    return batch, np.concatenate([pair[1] for pair in pairs])


@pytest.fixture
def network(changed):
    return changed().network.train()


def test_losses(vlm, network):
    theirs = recorded("training.json")
    # Right padding counts for the original's alpha in evaluation, so that of 460 tokens is asked for here.
    for mode in ("train", "eval"):
        network.train(mode == "train")
        batch, labels = both(vlm, prompt_length=len(theirs["input_ids"][0]))
        with torch.no_grad():
            found = {"both": loss_of(network, batch, labels, batch.starts).item()}
            first = int(batch.starts[1])
            logits = network(batch).logits
        for row, part in (("image_row", slice(0, first)), ("text_row", slice(first, None))):
            found[row] = F.cross_entropy(logits[part][:-1], torch.from_numpy(labels[part][1:])).item()
        for row, value in found.items():
            # Worst seen: 1e-6.
            assert value == pytest.approx(theirs[f"loss_{mode}_mode.{row}"], abs=1e-5), (mode, row)


def published_names(network):
    names = NameMap.parse(FAMILY.map_text(), where="qwen_vl.map")
    return {names.published(name): parameter for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("rows", ["both", "text_row"])
def test_gradients(vlm, network, rows):
    batch, labels = both(vlm) if rows == "both" else taught(vlm, 1)
    table = network.adapter.positions
    network.requires_grad_(True)
    table.requires_grad_(False)
    loss_of(network, batch, labels, batch.starts).backward()
    theirs = recorded("training.json")[f"grad_norms_train_mode.{rows}"]
    ours = published_names(network)
    assert ours.keys() == theirs.keys()
    for name, norm in theirs.items():
        gradient = ours[name].grad
        if norm is None:
            assert gradient is None, name
        else:  # worst seen: 2.0e-5 relative
            found = 0.0 if gradient is None else gradient.norm().item()
            assert found == pytest.approx(norm, rel=1e-4, abs=1e-7), name


def test_four_steps_of_the_release(vlm, network):
    """The script's `fix_vit` freezes the tower, `ln_post` and `proj`, and by accident trains the table of positions."""
    theirs = recorded("training.json")["fix_vit_adamw_losses"]
    parameters = published_names(network)
    for name, parameter in parameters.items():
        parameter.requires_grad_("visual" not in name or "attn_pool" in name)
    top = {n for n, p in parameters.items() if p.requires_grad and not n.startswith("transformer.h.")}
    assert top == {n for n in theirs["trainable"] if not n.startswith("transformer.h.")}
    optimiser = torch.optim.AdamW(
        [p for p in parameters.values() if p.requires_grad],
        lr=theirs["lr"], betas=tuple(theirs["betas"]), eps=theirs["eps"], weight_decay=theirs["weight_decay"],
    )  # fmt: skip
    batch, labels = both(vlm)
    losses = []
    for _ in theirs["losses"]:
        loss = loss_of(network, batch, labels, batch.starts)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Worst seen: 7.3e-5, in the third step: Adam makes as much of a small gradient as of a large one.
    assert losses == pytest.approx(theirs["losses"], abs=2e-4)
