"""Makes `containers/`: one tiny random Llama as three programs write it, and the logits of it.

- `hf/`: `save_pretrained` of transformers, bfloat16, in several shards with an index.
- `meta/`: `params.json` and what `torch.save` writes on each of two model-parallel ranks.
- `tiny.gguf`: by the `gguf` package, as llama.cpp's converter lays a Llama 3.1 out.
- `logits.json`: what transformers computes from these weights in float32.

Before anything is written, a second implementation that joins the two ranks and rotates interleaved pairs gives the same logits.
"""

import json
import shutil
from pathlib import Path

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "containers"
SEED = 20261125
RANKS = 2
TOKENS = 24
SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PARAMS = {
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 64,
    "multiple_of": 8,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
}
HEADS, KV_HEADS, HEAD = PARAMS["n_heads"], PARAMS["n_kv_heads"], PARAMS["dim"] // PARAMS["n_heads"]
# Two thirds of 4 * 16, times 1.3, rounded up to a multiple of 8.
FFN = 56
NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers.": "layers.",
}
BY_COLUMNS = ("wo", "w2")


def model():
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=PARAMS["vocab_size"],
        hidden_size=PARAMS["dim"],
        intermediate_size=FFN,
        num_hidden_layers=PARAMS["n_layers"],
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=131072,
        rms_norm_eps=PARAMS["norm_eps"],
        rope_parameters=SCALING,
        bos_token_id=1,
        eos_token_id=[2, 3],
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in llama.named_parameters():
            value.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return llama.to(torch.bfloat16)


def interleaved(w, heads):
    """Rows i and i + D/2 of each head become rows 2i and 2i + 1."""
    return w.view(heads, 2, HEAD // 2, -1).transpose(1, 2).reshape(w.shape)


def meta_weights(llama):
    weights = {}
    for name, value in llama.state_dict().items():
        for theirs, meta in NAMES.items():
            name = name.replace(theirs, meta)
        if "wq" in name or "wk" in name:
            value = interleaved(value, HEADS if "wq" in name else KV_HEADS)
        weights[name] = value
    return weights


def rank(weights, r):
    """What rank `r` holds: rows, columns of `wo` and `w2`, all of the norms."""
    own = {}
    for name, value in weights.items():
        if value.dim() == 2:
            value = value.chunk(RANKS, dim=1 if name.split(".")[-2] in BY_COLUMNS else 0)[r].clone()
        own[name] = value.contiguous()
    return own


def joined(ranks):
    def join(name):
        parts = [r[name] for r in ranks]
        if parts[0].dim() == 1:
            return parts[0]
        return torch.cat(parts, dim=1 if name.split(".")[-2] in BY_COLUMNS else 0)

    return {name: join(name).float() for name in ranks[0]}


def frequencies():
    """As `apply_scaling` of llama-models computes them."""
    f = 1.0 / (SCALING["rope_theta"] ** (torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD))
    turns = SCALING["original_max_position_embeddings"] * f / (2 * torch.pi)
    low, high = SCALING["low_freq_factor"], SCALING["high_freq_factor"]
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return f, (1 - smooth) * f / SCALING["factor"] + smooth * f


def meta_logits(w, ids):
    """Meta's forward pass: pairs of neighbours are rotated as complex numbers."""
    norm = lambda x, g: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + PARAMS["norm_eps"]) * g
    turn = torch.polar(torch.ones(1), torch.outer(torch.arange(len(ids)).double(), frequencies()[1]).float())

    def rotate(x, heads):
        pairs = torch.view_as_complex(x.view(len(ids), heads, HEAD // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn[:, None, :]).flatten(2)

    x = w["tok_embeddings.weight"][ids]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    for layer in range(PARAMS["n_layers"]):
        at = lambda name: w[f"layers.{layer}.{name}.weight"]
        h = norm(x, at("attention_norm"))
        q, k = rotate(h @ at("attention.wq").T, HEADS), rotate(h @ at("attention.wk").T, KV_HEADS)
        v = (h @ at("attention.wv").T).view(len(ids), KV_HEADS, HEAD)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / HEAD**0.5 + mask
        x = x + torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1) @ at("attention.wo").T
        h = norm(x, at("ffn_norm"))
        gate = torch.nn.functional.silu(h @ at("feed_forward.w1").T)
        x = x + (gate * (h @ at("feed_forward.w3").T)) @ at("feed_forward.w2").T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


def write_gguf(path, weights):
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(131072)
    out.add_embedding_length(PARAMS["dim"])
    out.add_block_count(PARAMS["n_layers"])
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_dimension_count(HEAD)
    out.add_rope_freq_base(SCALING["rope_theta"])
    out.add_layer_norm_rms_eps(PARAMS["norm_eps"])
    out.add_vocab_size(PARAMS["vocab_size"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    plain, scaled = frequencies()
    out.add_tensor("rope_freqs.weight", (plain / scaled).float().numpy())
    names = {
        "tok_embeddings": "token_embd", "norm": "output_norm", "attention_norm": "attn_norm", "wq": "attn_q",
        "wk": "attn_k", "wv": "attn_v", "wo": "attn_output", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
    }  # fmt: skip
    for name, value in weights.items():
        parts = name.split(".")
        theirs = names.get(parts[-2], parts[-2]) + ".weight"
        theirs = f"blk.{parts[1]}.{theirs}" if parts[0] == "layers" else theirs
        if value.dim() == 1:
            out.add_tensor(theirs, value.float().numpy())
        else:
            bits = value.contiguous().view(torch.int16).numpy().view("uint8")
            out.add_tensor(theirs, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    llama = model()
    weights = meta_weights(llama)
    ranks = [rank(weights, r) for r in range(RANKS)]
    ids = torch.randint(0, PARAMS["vocab_size"], (TOKENS,)).tolist()

    shutil.rmtree(HERE, ignore_errors=True)
    (HERE / "meta").mkdir(parents=True)
    llama.save_pretrained(HERE / "hf", max_shard_size="5KB")
    (HERE / "meta" / "params.json").write_text(json.dumps(PARAMS) + "\n")
    for r, own in enumerate(ranks):
        torch.save(own, HERE / "meta" / f"consolidated.{r:02}.pth")
    write_gguf(HERE / "tiny.gguf", weights)

    with torch.no_grad():
        # Opened again, because a conversion of the whole model has rounded its rotary frequencies too.
        opened = LlamaForCausalLM.from_pretrained(HERE / "hf", dtype=torch.float32).eval()
        logits = opened(torch.tensor([ids])).logits[0]
        again = meta_logits(joined(ranks), ids)
    difference = ((logits - again).abs().max() / logits.abs().max()).item()
    assert difference < 1e-5, difference
    golden = {"ids": ids, "logits": [round(x, 6) for x in logits.flatten().tolist()]}
    (HERE / "logits.json").write_text(json.dumps(golden) + "\n")
    print(f"two implementations differ by {difference:.1e} of the largest logit")


main()
