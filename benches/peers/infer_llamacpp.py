"""llama.cpp beside `llamero bench infer`, by its own programs.

    infer_llamacpp.py --bin DIR --model FILE.gguf --threads 2 --case prefill --tokens 512
    infer_llamacpp.py --bin DIR --model FILE.gguf --threads 2 --case decode --tokens 128
    infer_llamacpp.py --bin DIR --model FILE.gguf --threads 2 --serve

The first two run `llama-bench` once. The last starts `llama-server` and sends it, for each line of JSON on standard input
(`concurrency`, `prompt_tokens`, `gen_tokens`, `seed`), that many requests at the same time. DIR holds both programs. Nothing
but the standard library is needed.
"""

import argparse
import http.client
import json
import os
import random
import resource
import shlex
import socket
import subprocess
import sys
import threading
import time

from peer import all_threads, emit, peak_memory_bytes


def bench(args):
    counts = {"prefill": (args.tokens, 0), "decode": (0, args.tokens)}[args.case]
    command = [os.path.join(args.bin, "llama-bench"), "-m", args.model, "-p", str(counts[0]), "-n", str(counts[1])]
    command += ["-t", str(args.threads), "-fa", "1", "-r", str(args.reps), "-o", "json"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    result = json.loads(out)[0]
    emit(
        tokens_per_s=sorted(result["samples_ts"])[len(result["samples_ts"]) // 2],
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        model_type=result["model_type"],
        command=shlex.join(["llama-bench"] + command[1:]),
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def wait_until_ready(process, port):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit("llama-server ended with %s" % process.returncode)
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("llama-server was not ready within a minute")


def together(port, question):
    """Generated tokens per second of requests that start together, each with a prompt of its own."""
    dice = random.Random(question["seed"])
    prompts = [
        [dice.randrange(1000, 40000) for _ in range(question["prompt_tokens"])] for _ in range(question["concurrency"])
    ]
    counts = []

    def one(prompt):
        body = dict(prompt=prompt, n_predict=question["gen_tokens"], ignore_eos=True, temperature=0, cache_prompt=False)
        counts.append(post(port, body)["tokens_predicted"])

    threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if counts != [question["gen_tokens"]] * question["concurrency"]:
        sys.exit("llama-server generated %s tokens" % counts)
    return sum(counts) / seconds


def serve(args):
    port = free_port()
    command = [os.path.join(args.bin, "llama-server"), "-m", args.model, "-t", str(args.threads), "-fa", "on"]
    command += ["-np", "8", "-c", "8192", "--cache-ram", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        command + ["--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        wait_until_ready(process, port)
        post(port, dict(prompt=[1, 2, 3], n_predict=4))
        for line in sys.stdin:
            speed = together(port, json.loads(line))
            emit(tokens_per_s=speed, peak_memory_bytes=peak_memory_bytes(process.pid), command=shlex.join(["llama-server"] + command[1:]))
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--case", choices=["prefill", "decode"])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    serve(args) if args.serve else bench(args)


main()
