"""`transformers` in bf16 beside `llamero bench infer`: reading a prompt, and greedy decoding.

    infer_transformers.py --model FOLDER --threads 2 --serve

answers each line of JSON on standard input (`case`: `prefill` or `decode`, `tokens`, `seed`). FOLDER is one of Hugging
Face, such as `llamero convert MODEL.gguf --to hf --dtype bf16 --out FOLDER` writes.
"""

import argparse
import json
import sys
import time

from peer import all_threads, emit, peak_memory_bytes, use_threads


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--serve", action="store_true", required=True)
    args = parser.parse_args()
    use_threads(args.threads)
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    kind = transformers.AutoModelForCausalLM
    model = kind.from_pretrained(args.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    vocab = model.config.vocab_size

    def prefill(tokens, random):
        ids = torch.randint(0, vocab, (1, tokens), generator=random)
        begun = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - begun

    def decode(tokens, random):
        ids = torch.randint(0, vocab, (1, 1), generator=random)
        options = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        begun = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - begun

    with torch.inference_mode():
        prefill(32, torch.Generator().manual_seed(0))
        decode(4, torch.Generator().manual_seed(0))
        for line in sys.stdin:
            question = json.loads(line)
            call = {"prefill": prefill, "decode": decode}[question["case"]]
            seconds = call(question["tokens"], torch.Generator().manual_seed(question["seed"]))
            name = {"prefill": "model(ids)", "decode": "model.generate(ids)"}[question["case"]]
            emit(
                tokens_per_s=question["tokens"] / seconds,
                peak_memory_bytes=peak_memory_bytes(),
                command="transformers %s, torch %s: %s in bf16" % (transformers.__version__, torch.__version__, name),
            )


main()
