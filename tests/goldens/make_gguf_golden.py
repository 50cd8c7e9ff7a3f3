"""Makes `llama_tiny.gguf` from `llama_tiny.safetensors` with the `gguf` package, in the way of llama.cpp's converter.

Q8_0 where rows are whole blocks, F16 where they are not, norms in F32. The tests compare the bytes of our own writer with
it, and read it.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors.numpy import load_file

HERE = Path(__file__).parent
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(w, heads):
    """From rows i and i + D/2 of a head being a pair to rows 2i and 2i + 1 being one."""
    rows, cols = w.shape
    return w.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tensors(config):
    weights = load_file(HERE / "llama_tiny.safetensors")
    yield "token_embd.weight", weights["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        for hf, name in NAMES.items():
            w = weights[f"model.layers.{layer}.{hf}.weight"]
            heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(name)
            yield f"blk.{layer}.{name}.weight", interleaved(w, heads) if heads else w
    yield "output_norm.weight", weights["model.norm.weight"]
    yield "output.weight", weights["lm_head.weight"]


def main():
    config = json.loads((HERE / "llama_tiny.json").read_text())["config"]
    out = gguf.GGUFWriter(HERE / "llama_tiny.gguf", "llama")
    out.add_name("llama_tiny")
    out.add_block_count(config["num_hidden_layers"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, w in tensors(config):
        kind = Type.F32 if w.ndim == 1 else Type.Q8_0 if w.shape[1] % 32 == 0 else Type.F16
        out.add_tensor(name, quants.quantize(np.ascontiguousarray(w), kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
