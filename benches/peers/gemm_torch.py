"""Matrix products in PyTorch, in the layouts that a Linear's forward (nt), input gradient (nn) and weight gradient (tn) have.

One product: gemm_torch.py --m 2048 --n 2048 --k 2048 --dtype bf16 --op nt
Many, each asked for by a JSON object on a line of standard input: gemm_torch.py --serve
"""

import argparse
import json
import sys

import peer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for size in ("--m", "--n", "--k"):
        parser.add_argument(size, type=int, default=2048)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--op", choices=["nt", "nn", "tn"], default="nt")
    parser.add_argument("--threads", type=int, default=peer.all_threads())
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="least seconds of work in a sample")
    parser.add_argument("--serve", action="store_true", help="read shapes from standard input until it ends")
    return parser.parse_args()


ARGS = arguments()
peer.use_threads(ARGS.threads)

import torch  # noqa: E402, the number of threads must be settled first


def product(m, n, k, dtype, op):
    """A call that multiplies once. The result has a place of its own, so no time goes into getting memory."""
    of = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    normal = lambda rows, columns: torch.randn(rows, columns).to(of)  # noqa: E731
    out = torch.empty(m, n, dtype=of)
    if op == "nt":
        x, w = normal(m, k), normal(n, k)
        return lambda: torch.mm(x, w.t(), out=out)
    if op == "nn":
        dy, w = normal(m, k), normal(k, n)
        return lambda: torch.mm(dy, w, out=out)
    dy, x = normal(k, m), normal(k, n)
    return lambda: torch.mm(dy.t(), x, out=out)


def measure(m, n, k, dtype, op, samples, seconds):
    call = product(m, n, k, dtype, op)
    call()
    calls, took = 1, peer.seconds_of(call)

    def sample():
        for _ in range(calls):
            call()

    while took < seconds:
        calls = min(max(calls + 1, int(calls * 1.1 * seconds / max(took, 1e-9)) + 1), calls * 16)
        took = peer.seconds_of(sample)
    speeds = [2.0 * m * n * k * calls / peer.seconds_of(sample) / 1e9 for _ in range(samples)]
    peer.emit(
        library="torch " + torch.__version__, m=m, n=n, k=k, dtype=dtype, op=op, threads=ARGS.threads,
        gflops=peer.median(speeds), gflops_best=max(speeds), samples=samples,
    )


def main():
    torch.manual_seed(0)
    torch.set_num_threads(ARGS.threads)
    with torch.no_grad():
        if not ARGS.serve:
            measure(ARGS.m, ARGS.n, ARGS.k, ARGS.dtype, ARGS.op, ARGS.samples, ARGS.seconds)
            return
        for line in sys.stdin:
            asked = json.loads(line)
            shape = [asked[key] for key in ("m", "n", "k", "dtype", "op")]
            measure(*shape, asked.get("samples", 1), asked.get("seconds", ARGS.seconds))


main()
