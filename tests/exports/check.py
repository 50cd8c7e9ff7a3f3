"""Opens what `llamero convert` writes in `transformers` and in llama.cpp, and compares ids and greedy text with llamero's.

    python check.py --llamero target/release/llamero MODEL…

MODEL is whatever llamero opens: a run folder, a folder of Hugging Face or Meta, a GGUF file. Each is converted to a Hugging
Face folder and to GGUF files of several encodings in a temporary folder (`--keep DIR` keeps them). For every export and prompt:

- the prompt has the same ids in both programs;
- the greedy ids are the same, token by token. Where they part, the other program's logits say how near its choice and ours
  lie: a difference below the tolerance is rounding, anything more fails. Tolerances are for the arithmetic that the other
  program uses, and stand in the table below.

Needs what requirements.txt here lists. Prints a Markdown table; ends with 1 on failure.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a small",
    "def fibonacci(n):\n    ",
    "1 2 3 5 8 13 21",
    "Ünïcode — naïve café 🦙, 日本語",
    "It's 12:34 and  two  spaces\n\n\tand a tab; we'll see what they've",
]
QUESTIONS = ["What is the capital of France?", "Say hello in three words."]

# How far apart two logits may be that the other program orders differently. llama.cpp rounds activations to the 8-bit
# blocks, or the 16-bit floats, of its weights; transformers computes in f32.
TOLERANCE = {"f32": 0.01, "f16": 0.05, "bf16": 0.5}
QUANTISED = 1.0


class Llamero:
    def __init__(self, program, threads):
        self.program, self.threads = program, str(threads)

    def call(self, *args, reading=None):
        command = [self.program, *args]
        done = subprocess.run(command, input=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit("%s failed:\n%s" % (" ".join(command), done.stderr))
        return done.stdout

    def convert(self, model, encoding, out):
        self.call("convert", model, "--to", "hf" if encoding.startswith("hf-") else "gguf", "--dtype", encoding.removeprefix("hf-"), "--out", out)

    def generate(self, model, prompt, tokens, dtype):
        answer = self.call(
            "generate", model, "--prompt", prompt, "--max-tokens", str(tokens), "--temperature", "0", "--json",
            "--dtype", dtype, "--threads", self.threads,
        )
        return json.loads(answer)

    def chat(self, model, question, tokens, dtype):
        answer = self.call(
            "chat", model, "--max-tokens", str(tokens), "--temperature", "0", "--json", "--dtype", dtype,
            "--threads", self.threads, reading=question + "\n",
        )
        return json.loads(answer)


class Transformers:
    """A folder in transformers, computed in f32."""

    name = "transformers"

    def __init__(self, folder, threads):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def encode(self, text):
        return self.tokenizer(text)["input_ids"]

    def decode(self, ids):
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def chat_ids(self, question):
        messages = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def logits(self, ids):
        """A function from the next token (none at first) to the logits after it."""
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([ids]), use_cache=True)
        state = {"cache": out.past_key_values}

        def next_logits(token=None):
            if token is None:
                return out.logits[0, -1].numpy()
            with self.torch.inference_mode():
                step = self.model(self.torch.tensor([[token]]), past_key_values=state["cache"], use_cache=True)
            return step.logits[0, -1].numpy()

        return next_logits


class LlamaCpp:
    """A GGUF file in llama.cpp, with keys and values in f32."""

    name = "llama.cpp"

    def __init__(self, path, threads):
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        f32 = llama_cpp.GGML_TYPE_F32
        self.model = llama_cpp.Llama(
            path, n_ctx=512, n_threads=threads, n_threads_batch=threads, type_k=f32, type_v=f32, flash_attn=False, verbose=False
        )
        vocab = llama_cpp.llama_model_get_vocab(self.model._model.model)
        self.add_bos = llama_cpp.llama_vocab_get_add_bos(vocab)

    def encode(self, text):
        return self.model.tokenize(text.encode(), add_bos=self.add_bos, special=False)

    def decode(self, ids):
        return self.model.detokenize(ids, special=True).decode(errors="replace")

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)

        def next_logits(token=None):
            if token is not None:
                self.model.eval([token])
            pointer = self.lib.llama_get_logits_ith(self.model._ctx.ctx, -1)
            shape = (self.model.n_vocab(),)
            return self.numpy.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), shape=shape).copy()

        return next_logits


def compare(other, answer):
    """Tokens that are equal, and how much likelier the other finds its own choice where they part (0 where they do not)."""
    next_logits = other.logits(answer["prompt_ids"])
    logits = next_logits()
    for at, token in enumerate(answer["ids"]):
        best = int(logits.argmax())
        if best != token:
            return at, float(logits[best] - logits[token])
        logits = next_logits(token)
    return len(answer["ids"]), 0.0


def check(other, llamero, path, encoding, args, rows):
    """One export in one program; returns whether all is well."""
    # Their f32 is compared with ours; what is stored in fewer bits is exact in f32.
    ids_equal, texts_equal, gap, equal, total, good = 0, 0, 0.0, 0, 0, True
    tolerance = TOLERANCE["f32"] if other.name == "transformers" else TOLERANCE.get(encoding, QUANTISED)
    for prompt in PROMPTS:
        answer = llamero.generate(path, prompt, args.tokens, "f32")
        ids = other.encode(prompt)
        if ids == answer["prompt_ids"]:
            ids_equal += 1
        else:
            print("%s, %s: `%s` is %s, ours %s" % (other.name, encoding, prompt, ids, answer["prompt_ids"]))
        same, difference = compare(other, answer)
        equal, total, gap = equal + same, total + len(answer["ids"]), max(gap, difference)
        text = other.decode(answer["prompt_ids"] + answer["ids"])
        ours = other.decode(answer["prompt_ids"]) + answer["text"]
        texts_equal += text == ours
        if text != ours:
            print("%s, %s: text `%s`, ours `%s`" % (other.name, encoding, text, ours))
    good = ids_equal == texts_equal == len(PROMPTS) and gap <= tolerance
    rows.append([os.path.basename(path), other.name, "%d of %d" % (ids_equal, len(PROMPTS)), "%d of %d" % (equal, total),
                 "%d of %d" % (texts_equal, len(PROMPTS)), "%.3g (%g)" % (gap, tolerance), "ok" if good else "**no**"])
    return good


def check_chat(other, llamero, path, args, rows):
    """The chat format, where the folder has one."""
    if not getattr(other.tokenizer, "chat_template", None):
        return True
    good = 0
    for question in QUESTIONS:
        reply = llamero.chat(path, question, args.tokens, "f32")
        ids = other.chat_ids(question)
        next_logits, said = other.logits(ids), []
        logits = next_logits()
        while len(said) < args.tokens and int(logits.argmax()) not in stop_ids(other):
            said.append(int(logits.argmax()))
            logits = next_logits(said[-1])
        text = other.decode(said)
        same = (len(ids), text) == (reply["prompt_tokens"], reply["text"])
        good += same
        if not same:
            print("chat: %d tokens and `%s`, ours %d and `%s`" % (len(ids), text, reply["prompt_tokens"], reply["text"]))
    rows.append([os.path.basename(path) + ", chat", other.name, "%d of %d" % (good, len(QUESTIONS)), "", "", "",
                 "ok" if good == len(QUESTIONS) else "**no**"])
    return good == len(QUESTIONS)


def stop_ids(other):
    stop = other.model.generation_config.eos_token_id
    return stop if isinstance(stop, list) else [stop]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--llamero", required=True)
    parser.add_argument("--encodings", default="hf-f32,hf-bf16,f32,f16,bf16,q8_0,q4_0,q4_1,q5_0,q5_1,q4_k,q5_k,q6_k")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", metavar="DIR")
    args = parser.parse_args()
    llamero, rows, good = Llamero(args.llamero, args.threads), [], True
    with tempfile.TemporaryDirectory() as temporary:
        for at, model in enumerate(args.models):
            for encoding in args.encodings.split(","):
                stem = "%d-%s" % (at, encoding)
                out = os.path.join(args.keep or temporary, stem if encoding.startswith("hf-") else stem + ".gguf")
                llamero.convert(model, encoding, out)
                if encoding.startswith("hf-"):
                    other = Transformers(out, args.threads)
                    good &= check_chat(other, llamero, out, args, rows)
                else:
                    other = LlamaCpp(out, args.threads)
                good &= check(other, llamero, out, encoding, args, rows)
    header = ["export", "opened by", "prompts with equal ids", "equal greedy ids", "equal text", "gap (tolerance)", ""]
    for row in [header, ["---"] * len(header), *rows]:
        print("| %s |" % " | ".join(row))
    sys.exit(not good)


if __name__ == "__main__":
    main()
