"""Makes `smollm2.json`: what SmolLM2-135M-Instruct says, computed apart from llamero.

The GGUF file that `cargo xtask fixtures` fetches is decoded by the `gguf` package, texts are encoded by the `tokenizers`
package, and the forward pass is a few lines of numpy in float64.

    pip install numpy gguf tokenizers
    python smollm2_golden.py [--gguf FILE] [--text FILE] [--check GOLDEN]

`--check` computes the numbers of another golden file of the same form and prints how far the two are apart; nothing is
written then. The ids of the text are stored, so the default text, ARCHITECTURE.md, may change later.

Shapes: T tokens, C model width, H heads of D, G of them keys and values.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROMPTS = [
    "The llama is a domesticated",
    "def fibonacci(n):\n",
    "In 1969, 2 people walked on",
    "Die Hauptstadt von Österreich heißt",
    "<|im_start|>user\nWrite a haiku about llamas.<|im_end|>\n<|im_start|>assistant\n",
]
GREEDY, TOP, SCORED = 24, 20, 1024


class Model:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda key: reader.fields[key].contents()
        self.heads = field("llama.attention.head_count")
        self.groups = field("llama.attention.head_count_kv")
        self.layers = field("llama.block_count")
        self.eps = field("llama.attention.layer_norm_rms_epsilon")
        self.theta = field("llama.rope.freq_base")
        self.eos = field("tokenizer.ggml.eos_token_id")
        self.weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.tokens = field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
        assert field("tokenizer.ggml.pre") == "smollm"
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        self.tokenizer = Tokenizer(models.BPE(vocabulary, merges))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        control = [t for t, kind in zip(self.tokens, field("tokenizer.ggml.token_type")) if kind == 3]
        self.tokenizer.add_special_tokens(control)
        letters = gguf_letters()
        self.bytes = [bytes(letters[c] for c in token if c in letters) for token in self.tokens]
        self.cache = [None] * self.layers

    def weight(self, name):
        return self.weights[name].astype(np.float64)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return b"".join(self.bytes[i] for i in ids).decode("utf-8", "replace")

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weight(name)

    def rotate(self, x, first):
        """x [T, heads, D]; GGUF keeps the pairs (0, 1), (2, 3) ... side by side."""
        d = x.shape[-1]
        angle = np.arange(first, first + len(x))[:, None] * self.theta ** (-np.arange(0, d, 2) / d)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def attention(self, x, layer, first):
        name = f"blk.{layer}."
        t, d = len(x), self.weights[name + "attn_q.weight"].shape[0] // self.heads
        part = lambda which: (x @ self.weight(f"{name}attn_{which}.weight").T).reshape(t, -1, d)
        q, k, v = self.rotate(part("q"), first), self.rotate(part("k"), first), part("v")
        if first:
            k, v = (np.concatenate(pair) for pair in zip(self.cache[layer], (k, v)))
        self.cache[layer] = (k, v)
        k, v = (np.repeat(a, self.heads // self.groups, axis=1) for a in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(d)
        hidden = np.arange(len(k))[None, :] > np.arange(first, first + t)[:, None]
        scores = np.where(hidden, -np.inf, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return np.einsum("hts,shd->thd", scores, v).reshape(t, -1) @ self.weight(name + "attn_output.weight").T

    def logits(self, ids, first=0, last_only=False):
        """Logits [T, V] of `ids`, which follow `first` tokens that went before."""
        table = self.weights["token_embd.weight"]
        x = table[ids].astype(np.float64)
        for layer in range(self.layers):
            name = f"blk.{layer}."
            x = x + self.attention(self.norm(x, name + "attn_norm.weight"), layer, first)
            h = self.norm(x, name + "ffn_norm.weight")
            gate, up = (h @ self.weight(f"{name}ffn_{w}.weight").T for w in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.weight(name + "ffn_down.weight").T
        x = self.norm(x[-1:] if last_only else x, "output_norm.weight")
        # The output is tied to the embedding.
        assert "output.weight" not in self.weights
        return x @ table.astype(np.float64).T


def gguf_letters():
    """The byte that each letter of a byte-level vocabulary stands for."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def case(model, prompt, ids=None):
    ids = model.encode(prompt) if ids is None else ids
    logits = first = model.logits(ids, last_only=True)[0]
    said = []
    while len(said) < GREEDY and int(logits.argmax()) != model.eos:
        said.append(int(logits.argmax()))
        logits = model.logits(said[-1:], len(ids) + len(said) - 1)[0]
    top = np.argsort(-first, kind="stable")[:TOP]
    return {
        "prompt": prompt,
        "ids": ids,
        "greedy_ids": said,
        "greedy_text": model.decode(said),
        "first_top20": [[int(i), float(first[i])] for i in top],
    }


def mean_nll(model, ids):
    logits = model.logits(ids)[:-1]
    peak = logits.max(-1)
    log_sum = peak + np.log(np.exp(logits - peak[:, None]).sum(-1))
    return float((log_sum - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


def check(model, golden):
    worst = 0.0
    for want in golden["cases"]:
        got = case(model, want["prompt"])
        assert got["ids"] == want["ids"], (want["prompt"], got["ids"])
        assert got["greedy_ids"] == want["greedy_ids"], (want["prompt"], got["greedy_ids"])
        assert got["greedy_text"] == want["greedy_text"], (got["greedy_text"], want["greedy_text"])
        assert [i for i, _ in got["first_top20"]] == [i for i, _ in want["first_top20"]]
        for (_, a), (_, b) in zip(got["first_top20"], want["first_top20"]):
            worst = max(worst, abs(a - b) / abs(b))
    print(f"{len(golden['cases'])} prompts: same ids; logits differ by at most {worst:.1e} of themselves")
    for name, text in golden.items():
        if isinstance(text, dict) and "mean_nll" in text:
            got = mean_nll(model, text["ids"])
            print(f"{name}: mean NLL {got:.9f}, {text['mean_nll']:.9f} there, {abs(got - text['mean_nll']):.1e} apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", default=ROOT / "fixtures/SmolLM2-135M-Instruct.Q4_1.gguf", type=Path)
    parser.add_argument("--text", default=ROOT / "ARCHITECTURE.md", type=Path)
    parser.add_argument("--check", type=Path)
    args = parser.parse_args()
    model = Model(args.gguf)
    if args.check:
        return check(model, json.loads(args.check.read_text()))
    ids = model.encode(args.text.read_text())[:SCORED]
    assert len(ids) == SCORED
    golden = {
        "file": args.gguf.name,
        "greedy": f"at most {GREEDY} tokens, without the one that ends the text",
        "made_by": "smollm2_golden.py: numpy, float64",
        "cases": [case(model, prompt) for prompt in PROMPTS],
        "text": {"ids": ids, "mean_nll": mean_nll(model, ids)},
    }
    path = HERE / "smollm2.json"
    # One line for each key is enough for reading and for diffs.
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in golden.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(path, golden["text"]["mean_nll"])
    for made in golden["cases"]:
        print(repr(made["prompt"]), repr(made["greedy_text"]))


if __name__ == "__main__":
    main()
