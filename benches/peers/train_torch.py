"""Training steps in PyTorch: forward, backward, fused AdamW, on the shapes of `llamero bench train`.

train_torch.py --shape 125m --mode compile --dtype bf16
"""

import argparse

import peer

SHAPES = {
    "8m": dict(dim=288, layers=6, heads=6, kv_heads=2, ffn=768, vocab=4096, seq=512, batch=8),
    "56m": dict(dim=512, layers=8, heads=8, kv_heads=4, ffn=1408, vocab=32000, seq=1024, batch=4),
    "125m": dict(dim=768, layers=12, heads=12, kv_heads=4, ffn=2048, vocab=32000, seq=1024, batch=2),
    "125m-long": dict(dim=768, layers=12, heads=12, kv_heads=4, ffn=2048, vocab=128256, seq=8192, batch=1),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8m")
    for size in SHAPES["8m"]:
        parser.add_argument("--" + size.replace("_", "-"), type=int)
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16", help="bf16 is autocast")
    parser.add_argument("--threads", type=int, default=peer.all_threads())
    parser.add_argument("--steps", type=int, default=7, help="steps in all")
    parser.add_argument("--warmup", type=int, default=2, help="the first so many, at least 2, are not timed")
    args = parser.parse_args()
    args.warmup = max(args.warmup, 2)
    if args.steps <= args.warmup:
        parser.error(f"--steps {args.steps} leaves none to be timed after {args.warmup} of warm-up")
    return args


ARGS = arguments()
peer.use_threads(ARGS.threads)

import torch  # noqa: E402, the number of threads must be settled first

import llama_torch  # noqa: E402


def main():
    torch.manual_seed(0)
    torch.set_num_threads(ARGS.threads)
    start_memory = peer.peak_memory_bytes()
    given = {size: getattr(ARGS, size) for size in SHAPES["8m"] if getattr(ARGS, size) is not None}
    shape = {**SHAPES[ARGS.shape], **given}
    batch, seq, vocab = shape.pop("batch"), shape["seq"], shape["vocab"]
    model = llama_torch.Llama(**shape)
    step_model = torch.compile(model) if ARGS.mode == "compile" else model
    optimizer = llama_torch.optimizer(model, lr=3e-4)
    ids = torch.randint(vocab, (ARGS.steps, batch, seq + 1))
    losses = []

    def step(window):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ARGS.dtype == "bf16"):
            loss = step_model(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())

    seconds = [peer.seconds_of(lambda: step(window)) for window in ids]
    timed = seconds[ARGS.warmup:]
    peer.emit(
        library="torch " + torch.__version__, mode=ARGS.mode, dtype=ARGS.dtype, threads=ARGS.threads, **shape,
        batch=batch, params=sum(p.numel() for p in model.parameters()), steps=ARGS.steps, timed_steps=len(timed),
        tokens_per_s=batch * seq / peer.median(timed), step_seconds=timed, first_step_seconds=seconds[0],
        peak_memory_bytes=peer.peak_memory_bytes(), start_memory_bytes=start_memory, first_loss=losses[0], last_loss=losses[-1],
    )


main()
