"""The text encoder: texts end to end equal texts alone; which token stands for a text; what is refused."""

import numpy as np
import pytest
import torch

from foveal.core.errors import ConfigError, InputError
from foveal.language.text_config import TextConfig
from foveal.language.text_encoder import TextEncoder
from foveal.nn.keep import Keep

SIZES = {"vocab": 60, "width": 24, "depth": 2, "heads": 3, "mlp_width": 40, "context": 12, "embed": 10}


def encoder(**changes: object) -> TextEncoder:
    torch.manual_seed(3)
    made = TextEncoder(TextConfig(**{**SIZES, "causal": True, **changes})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.requires_grad_(False)


def packed(texts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([i for t in texts for i in t], np.int64), np.cumsum([0, *map(len, texts)])


TEXTS = [[50, 1, 2, 3, 59], [50, 59], [50, 7, 7, 9, 11, 8, 2, 5, 4, 3, 1, 59], [50, 6, 59], [50, 8, 59]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_texts_end_to_end_equal_texts_alone(causal: bool, activation: str):
    """Measured: 3e-7."""
    model = encoder(causal=causal, activation=activation)
    together = model(*packed(TEXTS))
    alone = torch.cat([model(*packed([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_causal_encoder_does_not_see_what_follows():
    texts = [[50, 1, 2, 3, 59], [50, 1, 2, 4, 59]]
    found = []
    for causal in (True, False):
        keep = Keep(("text.norm",))
        encoder(causal=causal)(*packed(texts), keep)
        hidden = keep.finish()["text.norm"]
        found.append(torch.equal(hidden[:3], hidden[5:8]))
    assert found == [True, False]


def test_the_result_is_the_pooled_token_of_the_last_norm():
    model = encoder(pool="highest", head_bias=True)
    keep = Keep(("text.norm",))
    got = model(*packed(TEXTS), keep)
    _, starts = packed(TEXTS)
    expected = model.head(keep.finish()["text.norm"][torch.from_numpy(starts[1:] - 1)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "eos", "expected"),
    [("last", None, [4, 7, 9]), ("highest", None, [2, 6, 8]), ("eos", 9, [3, 6, 8])],
)
def test_which_token_stands_for_a_text(pool: str, eos: int | None, expected: list[int]):
    model = encoder(pool=pool, eos=eos)
    tokens, starts = packed([[1, 2, 30, 9, 30], [8, 9, 9], [9, 4]])
    assert model.pooled(tokens, starts).tolist() == expected


def test_what_is_refused():
    model = encoder(pool="eos", eos=59)
    with pytest.raises(InputError, match="text 1 has no closing token"):
        model(*packed([[1, 59], [1, 2]]))
    with pytest.raises(InputError, match="texts of 2 to 13 tokens; expected 1 to 12"):
        model(*packed([[1, 59], [1] * 12 + [59]]))
    with pytest.raises(InputError, match="texts of 0 to 2"):
        model(*packed([[1, 59], []]))
    with pytest.raises(ConfigError, match="activation 'relu'"):
        TextConfig(**SIZES, causal=True, activation="relu")
    with pytest.raises(ConfigError, match="not divisible"):
        TextConfig(**{**SIZES, "heads": 5}, causal=True)
    with pytest.raises(ConfigError, match="give the closing id"):
        TextConfig(**SIZES, causal=True, pool="eos")


@pytest.mark.parametrize("head_bias", [True, False])
def test_the_count_of_parameters(head_bias: bool):
    model = encoder(head_bias=head_bias)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters
