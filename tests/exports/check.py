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
TOLERANCE = {"F32": 0.01, "F16": 0.05, "BF16": 0.5}
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
        self.call("convert", model, out, "--encoding", encoding.removeprefix("hf-"), "--threads", self.threads)

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

    def ends(self, token):
        stop = self.model.generation_config.eos_token_id
        return token in (stop if isinstance(stop, list) else [stop])

    def chat(self, question, tokens):
        """Tokens of the prompt, and the answer."""
        messages = [{"role": "user", "content": question}]
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        next_logits, said = self.logits(ids), []
        token = int(next_logits().argmax())
        while len(said) < tokens and not self.ends(token):
            said.append(token)
            token = int(next_logits(token).argmax())
        return len(ids), self.decode(said)

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


def without_repacking(low):
    """Leaves weights as they are in the file: the kernels for rearranged ones differ by processor, and those for AMX crash in
    some virtual machines."""
    defaults = low.llama_model_default_params

    def changed():
        params = defaults()
        params.use_extra_bufts = False
        return params

    low.llama_model_default_params = changed


class LlamaCpp:
    """A GGUF file in llama.cpp, with keys and values in f32."""

    name = "llama.cpp"

    def __init__(self, path, threads):
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        without_repacking(llama_cpp.llama_cpp)
        f32 = llama_cpp.GGML_TYPE_F32
        self.model = llama_cpp.Llama(
            path, n_ctx=512, n_threads=threads, n_threads_batch=threads, type_k=f32, type_v=f32, flash_attn=False, verbose=False
        )
        vocab = llama_cpp.llama_model_get_vocab(self.model._model.model)
        self.vocab = vocab
        self.add_bos = llama_cpp.llama_vocab_get_add_bos(vocab)

    def encode(self, text):
        return self.model.tokenize(text.encode(), add_bos=self.add_bos, special=False)

    def decode(self, ids):
        return self.model.detokenize(ids, special=True).decode(errors="replace")

    def ends(self, token):
        return self.lib.llama_vocab_is_eog(self.vocab, token)

    def chat(self, question, tokens):
        """Tokens of the prompt, and the answer."""
        messages = [{"role": "user", "content": question}]
        answer = self.model.create_chat_completion(messages, temperature=0, max_tokens=tokens)
        return answer["usage"]["prompt_tokens"], answer["choices"][0]["message"]["content"]

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
    best = int(logits.argmax())
    if answer["finish"] == "stop" and not other.ends(best):
        return len(answer["ids"]), float(logits[best] - logits[answer["stop_id"]])
    return len(answer["ids"]), 0.0


def check(other, llamero, path, encoding, args, rows):
    """One export in one program; returns whether all is well."""
    # Their f32 is compared with ours; what is stored in fewer bits is exact in f32.
    ids_equal, texts_equal, gap, equal, total, good = 0, 0, 0.0, 0, 0, True
    prompts = PROMPTS[: args.prompts]
    tolerance = TOLERANCE["F32"] if other.name == "transformers" else TOLERANCE.get(encoding, QUANTISED)
    for prompt in prompts:
        answer = llamero.generate(path, prompt, args.tokens, args.dtype)
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
    good = ids_equal == texts_equal == len(prompts) and gap <= tolerance
    rows.append([os.path.basename(path), other.name, "%d of %d" % (ids_equal, len(prompts)), "%d of %d" % (equal, total),
                 "%d of %d" % (texts_equal, len(prompts)), "%.3g (%g)" % (gap, tolerance), "ok" if good else "**no**"])
    return good


def check_chat(other, llamero, path, args, rows):
    """The chat format and the end of turns, where arithmetic is precise enough for equal answers."""
    good = 0
    for question in QUESTIONS:
        reply = llamero.chat(path, question, args.tokens, args.dtype)
        length, text = other.chat(question, args.tokens)
        same = (length, text) == (reply["prompt_tokens"], reply["text"])
        good += same
        if not same:
            print("chat: %d tokens and `%s`, ours %d and `%s`" % (length, text, reply["prompt_tokens"], reply["text"]))
    what, count = os.path.basename(path) + ", chat", "%d of %d" % (good, len(QUESTIONS))
    rows.append([what, other.name, count, "", count, "", "ok" if good == len(QUESTIONS) else "**no**"])
    return good == len(QUESTIONS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--llamero", required=True)
    parser.add_argument("--encodings", default="hf-F32,hf-BF16,F32,F16,BF16,Q8_0,Q4_0,Q4_1,Q5_0,Q5_1,Q4_K,Q5_K,Q6_K")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only so many")
    parser.add_argument("--dtype", default="f32", help="what llamero computes in; other than f32, equal text is luck")
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
                else:
                    other = LlamaCpp(out, args.threads)
                if encoding.endswith("F32"):
                    good &= check_chat(other, llamero, out, args, rows)
                good &= check(other, llamero, out, encoding, args, rows)
    header = ["export", "opened by", "prompts with equal ids", "equal greedy ids", "equal decoding", "gap (tolerance)", ""]
    for row in [header, ["---"] * len(header), *rows]:
        print("| %s |" % " | ".join(row))
    sys.exit(not good)


if __name__ == "__main__":
    main()
