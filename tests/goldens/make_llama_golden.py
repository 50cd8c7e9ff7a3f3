"""Makes `llama_tiny.safetensors` and `llama_tiny.json`, the numbers that the Rust tests compare against.

The reference is `LlamaForCausalLM` of `transformers`, run in float64. Three of its functions convert to float32
whatever the dtype of the model (the norm, the rotary table, the softmax), so they are replaced here by float64 ones.
Before anything is written the script checks that
- a second implementation (Meta's interleaved complex RoPE, both documents packed in one pass) gives the same logits;
- `transformers` in float32, with nothing replaced, agrees to float32 accuracy in logits, gradients and losses;
- each of the usual mistakes (wrong theta, no document mask, no clipping ...) changes the numbers visibly.

Shapes: T tokens, C hidden, H query heads, K key/value heads, D head dim, V vocabulary.
"""

import contextlib
import json
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers.models.llama import modeling_llama

HERE = Path(__file__).parent
SEED = 20260314
LENGTHS = [9, 14]
NO_TARGET = -100
GREEDY_TOKENS = 12
CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
META_STORED = ["layers.0.attention.wq.weight", "layers.0.attention.wk.weight"]
OPTIMIZER = {"steps": 10, "lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}


# ---- the reference: transformers in float64 ----


def norm_f64(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotary_f64(self, x, position_ids):
    angles = rope_angles(position_ids.double(), CONFIG["rope_theta"])
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def attention_f64(module, query, key, value, attention_mask, scaling, **_):
    """Query is [1, H, T, D], key and value are [1, K, T, D], the mask is additive."""
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


@contextlib.contextmanager
def float64_inside():
    with (
        mock.patch.object(modeling_llama.LlamaRMSNorm, "forward", norm_f64),
        mock.patch.object(modeling_llama.LlamaRotaryEmbedding, "forward", rotary_f64),
        mock.patch.object(modeling_llama, "eager_attention_forward", attention_f64),
    ):
        yield


def rope_angles(positions, theta):
    """[..., T] positions -> [..., T, D/2] angles."""
    dim = CONFIG["head_dim"]
    return positions[..., None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def random_weights(generator):
    """Float32 values, so that storing them loses nothing. Large enough, and norms far enough from one, to show mistakes."""
    model = transformers.LlamaForCausalLM(hf_config())
    weights = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.dim() == 1:
            weights[name] = 1 + 0.2 * noise
        else:
            weights[name] = (0.1 if "embed" in name else 0.3) * noise
    return weights


def hf_config():
    return transformers.LlamaConfig(**CONFIG, attn_implementation="eager", bos_token_id=None, eos_token_id=None)


def hf_model(weights, dtype):
    model = transformers.LlamaForCausalLM(hf_config()).to(dtype)
    model.load_state_dict({name: value.to(dtype) for name, value in weights.items()})
    return model


def documents_of(tokens):
    return torch.split(tokens, LENGTHS)


def hf_logits(model, tokens):
    """[T] -> [T, V]: each document on its own, positions from 0."""
    return torch.cat([model(doc[None], use_cache=False).logits[0] for doc in documents_of(tokens)])


def targets_of(tokens):
    end = torch.tensor([NO_TARGET])
    return torch.cat([torch.cat([doc[1:], end]) for doc in documents_of(tokens)])


def mean_loss(logits, targets):
    total = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="sum")
    return total / (targets != NO_TARGET).sum()


def gradients(model, tokens):
    loss = mean_loss(hf_logits(model, tokens), targets_of(tokens))
    names, parameters = zip(*model.named_parameters())
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters)))


def train(model, tokens, decay_norms=False, **changes):
    """Losses and gradient norms, each taken before the step (and before clipping)."""
    opt = OPTIMIZER | changes
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": opt["weight_decay"]},
        {"params": vectors, "weight_decay": opt["weight_decay"] if decay_norms else 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=opt["lr"], betas=(opt["beta1"], opt["beta2"]), eps=opt["eps"], foreach=False)
    losses, norms = [], []
    for _ in range(opt["steps"]):
        adamw.zero_grad()
        loss = mean_loss(hf_logits(model, tokens), targets_of(tokens))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), opt["max_grad_norm"], foreach=False)
        adamw.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms


@torch.no_grad()
def greedy(model, prompt):
    """The most likely continuation, and the smallest lead of a chosen token over the runner-up."""
    ids, lead = prompt, float("inf")
    for _ in range(GREEDY_TOKENS):
        best = model(ids[None], use_cache=False).logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        ids = torch.cat([ids, best.indices[:1]])
    return ids[len(prompt) :].tolist(), lead


# ---- the second implementation: Meta's layout, packed ----


def hf_rows(weight, heads):
    """Rows of wq or wk: interleaved pairs (Meta) -> two halves per head (Hugging Face)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def meta_rows(weight, heads):
    """The inverse of `hf_rows`."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def meta_weights(weights):
    """Hugging Face names and rows -> Meta names and rows."""
    names = {
        "model.embed_tokens": "tok_embeddings",
        "model.layers": "layers",
        "model.norm": "norm",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }
    heads = {"q_proj": CONFIG["num_attention_heads"], "k_proj": CONFIG["num_key_value_heads"]}
    out = {}
    for name, value in weights.items():
        for key, count in heads.items():
            if key in name:
                value = meta_rows(value, count)
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = value
    return out


def meta_logits(w, tokens, theta=None, eps=None, lengths=None, tile_kv=False):
    """[T] -> [T, V] in one pass over the packed documents. `w` has Meta's names and row order."""
    theta, eps = theta or CONFIG["rope_theta"], eps or CONFIG["rms_norm_eps"]
    lengths = lengths or LENGTHS
    heads, kv_heads, dim = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    group = heads // kv_heads
    positions = torch.cat([torch.arange(n, dtype=torch.float64) for n in lengths])
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (document[:, None] == document[None, :]).tril()
    turn = torch.polar(torch.tensor(1.0, dtype=torch.float64), rope_angles(positions, theta))[:, None, :]

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def rotate(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (dim // 2, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)

    def widen(x):
        return x.repeat(1, group, 1) if tile_kv else x.repeat_interleave(group, dim=1)

    x = w["tok_embeddings.weight"][tokens]
    for layer in range(CONFIG["num_hidden_layers"]):
        at = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"layers.{layer}.")}
        h = norm(x, at["attention_norm.weight"])
        q = rotate((h @ at["attention.wq.weight"].T).unflatten(-1, (heads, dim)))
        k = rotate((h @ at["attention.wk.weight"].T).unflatten(-1, (kv_heads, dim)))
        v = (h @ at["attention.wv.weight"].T).unflatten(-1, (kv_heads, dim))
        scores = torch.einsum("thd,shd->hts", q, widen(k)) / dim**0.5
        scores = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        x = x + torch.einsum("hts,shd->thd", scores, widen(v)).flatten(1) @ at["attention.wo.weight"].T
        h = norm(x, at["ffn_norm.weight"])
        gate, up = h @ at["feed_forward.w1.weight"].T, h @ at["feed_forward.w3.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ at["feed_forward.w2.weight"].T
    return norm(x, w["norm.weight"]) @ w["output.weight"].T


# ---- checks and files ----


def error(value, reference):
    """Largest difference over largest magnitude."""
    value, reference = torch.as_tensor(value).double(), torch.as_tensor(reference).double()
    return ((value - reference).abs().max() / reference.abs().max()).item()


def check_second_implementation(weights, tokens, logits):
    meta = {name: value.double() for name, value in meta_weights(weights).items()}
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, hf, heads in [("wq", "q_proj", "num_attention_heads"), ("wk", "k_proj", "num_key_value_heads")]:
            back = hf_rows(meta[f"layers.{layer}.attention.{name}.weight"], CONFIG[heads])
            assert torch.equal(back, weights[f"model.layers.{layer}.self_attn.{hf}.weight"].double())
    difference = error(meta_logits(meta, tokens), logits)
    print(f"second implementation, packed: logits differ by {difference:.1e}")
    assert difference < 1e-12
    unconverted = dict(meta)
    for layer in range(CONFIG["num_hidden_layers"]):
        for meta_name, hf in [("wq", "q_proj"), ("wk", "k_proj")]:
            name = f"layers.{layer}.attention.{meta_name}.weight"
            unconverted[name] = weights[f"model.layers.{layer}.self_attn.{hf}.weight"].double()
    mistakes = {
        "rows not converted": meta_logits(unconverted, tokens),
        "theta 10000": meta_logits(meta, tokens, theta=1e4),
        "eps 1e-6": meta_logits(meta, tokens, eps=1e-6),
        "no document mask": meta_logits(meta, tokens, lengths=[sum(LENGTHS)]),
        "kv heads tiled": meta_logits(meta, tokens, tile_kv=True),
    }
    for name, wrong in mistakes.items():
        print(f"mistake `{name}`: logits move by {error(wrong, logits):.1e}")
        assert error(wrong, logits) > 1e-4, name


def check_mistakes_in_training(weights, tokens, losses):
    mistakes = {
        "no clipping": {"max_grad_norm": 1e9},
        "no decay": {"weight_decay": 0.0},
        "norms decayed": {"decay_norms": True},
        "beta2 0.999": {"beta2": 0.999},
    }
    for name, change in mistakes.items():
        wrong, _ = train(hf_model(weights, torch.float64), tokens, **change)
        print(f"mistake `{name}`: losses move by {error(wrong, losses):.1e}")
        assert error(wrong, losses) > 1e-4, name


def float32_error(weights, tokens, logits, grads, losses):
    """How far `transformers` in float32, with nothing replaced, is from the numbers in float64."""
    model = hf_model(weights, torch.float32)
    plain_logits = hf_logits(model, tokens).detach()
    _, plain_grads = gradients(model, tokens)
    plain_losses, _ = train(model, tokens)
    return {
        "logits": error(plain_logits, logits),
        "grads": max(error(plain_grads[name], grads[name]) for name in grads),
        "losses": error(plain_losses, losses),
    }


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    weights = random_weights(generator)
    tokens = torch.randint(CONFIG["vocab_size"], (sum(LENGTHS),), generator=generator)
    targets = targets_of(tokens)

    with float64_inside():
        model = hf_model(weights, torch.float64)
        logits = hf_logits(model, tokens).detach()
        loss, grads = gradients(model, tokens)
        continuation, lead = greedy(model, documents_of(tokens)[0])
        losses, norms = train(model, tokens)
        check_mistakes_in_training(weights, tokens, losses)
    check_second_implementation(weights, tokens, logits)
    plain = float32_error(weights, tokens, logits, grads, losses)
    print(f"plain float32: {plain}; smallest greedy lead {lead:.3f}; gradient norms {min(norms):.2f} to {max(norms):.2f}")
    assert max(plain.values()) < 1e-5 and losses[0] == loss
    assert lead > 1e-2 and min(norms) > OPTIMIZER["max_grad_norm"] and len(set(continuation)) > 3

    meta = {f"meta.{name}": w for name, w in meta_weights(weights).items() if name in META_STORED}
    tensors = {
        **weights,
        "logits": logits.float(),
        **{f"grad.{name}": value.float() for name, value in grads.items()},
        "tokens": tokens.int(),
        "targets": targets.int(),
        **meta,
    }
    path = HERE / "llama_tiny.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.chmod(0o644)
    summary = {
        "config": CONFIG,
        "document_lengths": LENGTHS,
        "num_targets": int((targets != NO_TARGET).sum()),
        "loss": loss,
        "optimizer": OPTIMIZER,
        "losses": losses,
        "grad_norms": norms,
        "greedy": continuation,
        "float32_error": plain,
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
    }
    (HERE / "llama_tiny.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
