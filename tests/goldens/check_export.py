"""Opens an exported folder with `transformers` and prints what it says, to compare with llamero's own answer.

    python check_export.py DIR "PROMPT" [MAX_TOKENS]

Prints one line of JSON:
  prompt_ids  the prompt as the exported tokenizer encodes it, begin-of-text first
  ids         the greedy continuation, at most MAX_TOKENS (32), without the stop token
  stop        the stop token that ended it, or null
  text        `ids` decoded
  nll         mean negative log-likelihood (nats) of prompt_ids[1:], null for a prompt of one token
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a folder that lacks a file must fail, not look for it elsewhere

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer


def as_list(ids):
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


@torch.no_grad()
def main():
    if len(sys.argv) not in (3, 4) or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    folder, prompt = sys.argv[1:3]
    max_tokens = int(sys.argv[3]) if len(sys.argv) == 4 else 32

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        sys.exit(f"the weights do not match the config: {problems}")
    if len(tokenizer) > model.config.vocab_size:
        sys.exit(f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}")

    prompt_ids = tokenizer(prompt)["input_ids"]
    bos = model.config.bos_token_id
    if prompt_ids[:1] != as_list(bos):
        sys.exit(f"the encoded prompt starts with {prompt_ids[:1]}, not with the model's begin-of-text {bos}")

    ids = torch.tensor([prompt_ids])
    nll = None
    if len(prompt_ids) > 1:
        logits = model(ids).logits[0, :-1].double()
        nll = F.cross_entropy(logits, ids[0, 1:]).item()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens)
    new = out[0, len(prompt_ids) :].tolist()
    stops = as_list(model.generation_config.eos_token_id)
    stop = new.pop() if new and new[-1] in stops else None
    print(
        json.dumps(
            {"prompt_ids": prompt_ids, "ids": new, "stop": stop, "text": tokenizer.decode(new), "nll": nll}
        )
    )


if __name__ == "__main__":
    main()
