"""Trains in PyTorch from the folder that `llamero bench train --dump DIR` wrote: the same weights, tokens, learning rates,
clipping and weight decay. Writes one loss a line.

curve_torch.py DIR --dtype bf16 --losses torch.txt
"""

import argparse
import json
import os

import peer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16", help="bf16 is autocast")
    parser.add_argument("--threads", type=int, default=peer.all_threads())
    parser.add_argument("--losses", required=True)
    return parser.parse_args()


ARGS = arguments()
peer.use_threads(ARGS.threads)

import numpy  # noqa: E402, the number of threads must be settled first
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import llama_torch  # noqa: E402


def read_json(name):
    with open(os.path.join(ARGS.dir, name)) as file:
        return json.load(file)


def load(seq):
    """The dumped model, with f32 weights."""
    config, weights = read_json("config.json"), load_file(os.path.join(ARGS.dir, "model.safetensors"))
    model = llama_torch.Llama(
        dim=config["hidden_size"], layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"], ffn=config["intermediate_size"], vocab=config["vocab_size"], seq=seq,
    )
    fused = {
        "embedding": ["model.embed_tokens"], "norm": ["model.norm"], "output": ["lm_head"],
    }
    parts = {
        "attention_norm": ["input_layernorm"], "ffn_norm": ["post_attention_layernorm"],
        "wqkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "wo": ["self_attn.o_proj"],
        "w13": ["mlp.gate_proj", "mlp.up_proj"], "w2": ["mlp.down_proj"],
    }
    for i in range(len(model.blocks)):
        for name, names in parts.items():
            fused[f"blocks.{i}.{name}"] = [f"model.layers.{i}.{part}" for part in names]
    state = {
        f"{name}.weight": torch.cat([weights[f"{part}.weight"].float() for part in names])
        for name, names in fused.items()
    }
    model.load_state_dict(state)
    return model


def main():
    torch.set_num_threads(ARGS.threads)
    meta = read_json("meta.json")
    settings, seq = meta["optimizer"], meta["seq"]
    model = load(seq)
    optimizer = llama_torch.optimizer(
        model, lr=settings["peak_lr"], betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    ids = numpy.fromfile(os.path.join(ARGS.dir, "tokens.u32"), dtype="<u4").astype("int64")
    ids = torch.from_numpy(ids.reshape(meta["steps"], meta["batch"], seq + 1))
    losses = []
    for window, lr in zip(ids, meta["lr"]):
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ARGS.dtype == "bf16"):
            loss = model(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    with open(ARGS.losses, "w") as file:
        file.writelines(f"{loss}\n" for loss in losses)
    peer.emit(
        library="torch " + torch.__version__, dtype=ARGS.dtype, steps=len(losses),
        first_loss=losses[0], last_loss=losses[-1],
    )


main()
