"""Qwen2-VL-2B's language model with random weights, for peers that run language models: a folder of what transformers
calls Qwen2ForCausalLM, and from it OpenVINO's and llama.cpp's files.

    build/peers/openvino/bin/python benchmarks/sides/language_model.py hf BUILD/random/qwen2_vl-2b build/peers/models/lm
    build/peers/openvino/bin/python benchmarks/sides/language_model.py openvino build/peers/models/lm build/peers/models
    build/peers/openvino/bin/python benchmarks/sides/language_model.py gguf build/peers/models/lm build/peers/models
"""

import json
import sys
from pathlib import Path


def hf(source: Path, target: Path) -> None:
    """The language part of a checkpoint of ours, tensor by tensor, quantized or not."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    kept = (
        "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "vocab_size",
        "torch_dtype",
    )  # fmt: skip
    kept = (*kept, "quantization_config") if "quantization_config" in config else kept
    own = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "eos_token_id": 151935, "bos_token_id": 151934}
    (target / "config.json").write_text(json.dumps({**own, **{k: config[k] for k in kept}}, indent=2))
    tensors = {}
    with safe_open(source / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            if "visual" not in name:
                plain = name.replace("model.language_model.", "model.")
                tensors[plain] = file.get_tensor(name)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def openvino(source: Path, target: Path) -> None:
    """Stateful graphs with bfloat16, int8 and int4 weights."""
    import gc

    import nncf
    from openvino import Core, save_model
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    plain = target / "openvino"
    if not (plain / "openvino_model.xml").exists():
        # Without a configuration, a model of more than a billion weights is exported in 8 bits.
        main_export(
            str(source), plain, task="text-generation-with-past", ov_config=OVConfig(), convert_tokenizer=False,
            torch_dtype="bfloat16",
        )  # fmt: skip
    forms = {
        "openvino-int8": {"mode": nncf.CompressWeightsMode.INT8_SYM},
        "openvino-int4": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 128, "ratio": 1.0},
    }
    for name, options in forms.items():
        folder = target / name
        if (folder / "openvino_model.xml").exists():
            continue
        model = Core().read_model(plain / "openvino_model.xml")
        model = nncf.compress_weights(model, **options)
        folder.mkdir(exist_ok=True)
        save_model(model, folder / "openvino_model.xml")
        del model
        gc.collect()


def gguf(source: Path, target: Path) -> None:
    """BF16, Q8_0 and Q4_0 (whose head llama.cpp would write as Q6_K; here it is Q8_0)."""
    import gguf as library
    import numpy as np
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text())
    names = library.get_tensor_name_map(library.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    kinds = library.GGMLQuantizationType
    for label, kind in (("bf16", kinds.BF16), ("q8_0", kinds.Q8_0), ("q4_0", kinds.Q4_0)):
        path = target / f"lm-{label}.gguf"
        if path.exists():
            continue
        writer = library.GGUFWriter(path, "qwen2", use_temp_file=True)
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
        with safe_open(source / "model.safetensors", "pt") as file:
            for name in file.keys():  # noqa: SIM118
                values = file.get_tensor(name).float().numpy()
                wanted = kinds.F32 if values.ndim == 1 else kind
                if "embed_tokens" in name and kind == kinds.Q4_0:
                    wanted = kinds.Q8_0
                data = values.astype(np.float32) if wanted == kinds.F32 else library.quants.quantize(values, wanted)
                short = names.get_name(name, try_suffixes=(".weight", ".bias"))
                writer.add_tensor(short, data, raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    {"hf": hf, "openvino": openvino, "gguf": gguf}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
