"""`foveal.load` on a dual encoder: vectors, similarities, labels without training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.core.errors import BudgetError, ConfigError, ContextError, InputError
from foveal.engine import model as talking
from tests.helpers import checkpoints, clip
from tests.helpers.pictures import odd_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return clip.write(clip.oracle(seed=5), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder: Path) -> foveal.Dual:
    return foveal.load(folder, device="cpu")


def test_batches_do_not_change_vectors(model: foveal.Dual):
    """Measured: 1.2e-7."""
    pictures = odd_pictures()
    told: list[tuple[int, int]] = []
    whole = model.embed_images(pictures)
    assert whole.shape == (20, 24)
    torch.testing.assert_close(
        model.embed_images(pictures, batch=3, progress=lambda *p: told.append(p)), whole, rtol=0, atol=1e-5
    )
    assert told == [(3, 20), (6, 20), (9, 20), (12, 20), (15, 20), (18, 20), (20, 20)]
    torch.testing.assert_close(model.embed_images(pictures[7]), whole[7:8], rtol=0, atol=1e-5)
    texts = ["a cat", "a photo of a dog", "a red bicycle"]
    together = model.embed_text(texts)
    torch.testing.assert_close(together, torch.cat([model.embed_text(t) for t in texts]), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.embed_text(texts, batch=2), together, rtol=0, atol=1e-5)


def test_similarity_takes_pictures_or_vectors(model: foveal.Dual):
    pictures, texts = odd_pictures()[:3], ["a cat", "a dog"]
    vectors = model.embed_images(pictures), model.embed_text(texts)
    expected = model.network.logit_scale.exp() * vectors[0] @ vectors[1].T
    torch.testing.assert_close(model.similarity(pictures, texts), expected)
    torch.testing.assert_close(model.similarity(*vectors), expected)


def test_labels_are_means_over_templates(model: foveal.Dual):
    pictures, labels = odd_pictures()[:5], ["cat", "red {dog}", "bicycle"]
    templates = ["a photo of a {}.", "the {} on the left"]
    classes = torch.stack(
        [F.normalize(model.embed_text([t.replace("{}", label) for t in templates]).mean(0), dim=0) for label in labels]
    )
    expected = (model.network.logit_scale.exp() * model.embed_images(pictures) @ classes.T).softmax(-1)
    found = model.classify(pictures, labels, templates=templates)
    for match, row in zip(found, expected, strict=True):
        assert list(match.probabilities) == labels
        torch.testing.assert_close(torch.tensor(list(match.probabilities.values())), row, rtol=0, atol=1e-5)
        assert match.label == labels[int(row.argmax())]
        assert match.probability == max(match.probabilities.values())
    assert model.classify(pictures[0], labels)[0].probabilities != found[0].probabilities


def test_a_model_with_an_offset_gives_each_label_its_own_probability(folder: Path):
    model = foveal.load(folder, device="cpu")
    model.network.logit_bias = torch.nn.Parameter(torch.tensor(-3.0), requires_grad=False)
    (match,) = model.classify(odd_pictures()[3], ["cat", "dog"])
    logits = model.similarity(odd_pictures()[3], model.label_vectors(["cat", "dog"]))
    torch.testing.assert_close(torch.tensor(list(match.probabilities.values())), logits[0].sigmoid())


def test_what_is_refused(model: foveal.Dual):
    picture = odd_pictures()[0]
    for labels, says in (
        ([], "labels are"),
        ("cat", "labels are"),
        (["cat", " "], "labels are"),
        (["a", "a"], "twice"),
    ):
        with pytest.raises(InputError, match=says):
            model.classify(picture, labels)
    for templates, says in (
        ([], "templates are"),
        ("a {}", "templates are"),
        (["a"], "0 places"),
        (["{} {}"], "2 places"),
    ):
        with pytest.raises(InputError, match=says):
            model.classify(picture, ["cat"], templates=templates)
    with pytest.raises(InputError, match="there is no text"):
        model.embed_text([])
    with pytest.raises(InputError, match="there is no picture"):
        model.embed_images([])
    with pytest.raises(InputError, match=r"no result named 'text\.nrom'; did you mean 'text\.norm'"):
        model.forward(model.process_text("a cat"), keep=["text.nrom"])
    with pytest.raises(InputError, match="batch is 0"):
        model.embed_images(picture, batch=0)
    with pytest.raises(ContextError, match="truncate=True"):
        model.embed_text("cat " * 30)
    assert model.embed_text("cat " * 30, truncate=True).shape == (1, 24)


def test_pictures_keep_to_the_budget(folder: Path):
    model = foveal.load(folder, device="cpu", budget=foveal.MediaBudget(image_px=10_000, media=2))
    assert model.embed_images(odd_pictures()[:5]).shape == (5, 24)  # opened two at a time
    with pytest.raises(BudgetError, match="224 x 224"):
        model.embed_images(odd_pictures()[17])


def test_no_text_becomes_a_special_token(model: foveal.Dual):
    end = model.processor.captions.encode("")[-1]
    packed = model.processor.texts(["a <|endoftext|> cat", "<|startoftext|>"])
    assert (packed.tokens == end).sum() == 2
    assert model.special_ids == {end - 1, end}


def test_half_precision(folder: Path, model: foveal.Dual):
    """Measured: 0.01 in a cosine."""
    half = foveal.load(folder, device="cpu", dtype="bfloat16")
    pictures, texts = odd_pictures()[:4], ["a cat", "a dog"]
    assert half.network.dtype == torch.bfloat16
    vectors = half.embed_images(pictures)
    assert vectors.dtype == torch.float32
    cosines = vectors @ half.embed_text(texts).T
    torch.testing.assert_close(cosines, model.embed_images(pictures) @ model.embed_text(texts).T, rtol=0, atol=0.03)


def test_a_dual_encoder_answers_no_questions(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="answers no questions"):
        talking.load(folder, device="cpu")
    loaded = foveal.load(checkpoints.write(checkpoints.oracle(), tmp_path), device="cpu")
    assert isinstance(loaded, foveal.Model)
