"""The language model of DeepSeek-VL2 beside transformers' DeepSeek-V2, where the two are the same.

transformers has no DeepSeek-VL2. Its DeepSeek-V2 differs in what it does with normalised weights, so these have none.
"""

import pytest
import torch
from safetensors.torch import load_file

from foveal.families.deepseek_vl2 import FAMILY
from foveal.language.decoder import Decoder
from foveal.weights.names import NameMap

STRETCH = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1}
STRETCH |= {"mscale": 0.7, "mscale_all_dim": 0.7}
SIZES = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "moe_intermediate_size": 20, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12, "v_head_dim": 10, "routed_scaling_factor": 1.5, "norm_topk_prob": False,
    "max_position_embeddings": 512,
}  # fmt: skip
KINDS = {
    "greedy": {"q_lora_rank": None, "topk_method": "greedy"},
    "groups": {"q_lora_rank": 12, "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The same random weights in both."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    kind = KINDS[request.param]
    rope = {"rope_type": "default", "rope_theta": 1e4}
    if request.param == "groups":
        rope = {"rope_type": "yarn", "rope_theta": 1e4, **STRETCH}
    torch.manual_seed(0)
    oracle = DeepseekV2ForCausalLM(DeepseekV2Config(**SIZES, **kind, rope_parameters=rope)).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            noise = torch.randn_like(parameter) * 0.15
            parameter.copy_(1 + noise if parameter.ndim == 1 else noise)
    folder = tmp_path_factory.mktemp(request.param)
    oracle.save_pretrained(folder)
    language = {**SIZES, **kind, "rope_theta": 1e4}
    if request.param == "groups":
        language["rope_scaling"] = {"type": "yarn", **STRETCH}
    config = FAMILY.from_published(
        {
            "vision_config": {"width": 32, "layers": 1, "heads": 2, "image_size": 32},
            "projector_config": {"input_dim": 32, "n_embed": 48},
            "language_config": language,
            "candidate_resolutions": [[32, 32]],
        }
    )
    ours: Decoder = FAMILY.build(config).language
    names = NameMap.parse(FAMILY.map_text())
    stored = load_file(folder / "model.safetensors")
    ours.load_state_dict(
        {str(names.ours(f"language.{key}")).removeprefix("language."): tensor for key, tensor in stored.items()}
    )
    return oracle, ours.eval().requires_grad_(False)


def scores(decoder, ids, cache=None, start=0):
    at = torch.arange(start, start + len(ids))[None]
    return decoder.logits(decoder(decoder.embed(ids), at, [0, len(ids)], cache=cache))


@pytest.mark.parametrize("length", [1, 7, 60])
def test_scores(pair, length):
    oracle, ours = pair
    torch.manual_seed(length)
    ids = torch.randint(0, 100, (length,))
    with torch.no_grad():
        expected = oracle(ids[None]).logits[0]
    # Worst seen: 3.6e-6, on values up to 4.2.
    torch.testing.assert_close(scores(ours, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_64_greedy_tokens(pair):
    oracle, ours = pair
    ids = torch.tensor([5, 17, 60, 3])
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    theirs = oracle.generate(ids[None], attention_mask=torch.ones(1, 4), **options)[0, 4:].tolist()
    cache, made, new = ours.new_cache(1), [], ids
    while len(made) < 64:
        row = scores(ours, new, cache, start=cache.lengths[0])[-1]
        made.append(int(row.argmax()))
        new = torch.tensor(made[-1:])
    assert made == theirs
