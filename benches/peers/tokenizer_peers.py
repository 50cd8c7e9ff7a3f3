"""Encoding text with Llama 3's ranks: tiktoken, tokenizers or quicktok, in batches over threads.

Prints mb_per_s (10^6 bytes of UTF-8 per second), encode_s, load_s, tokens, and with --ids how many documents have other ids.
"""

import argparse
import base64
import json
import os
import time

import peer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_documents(path):
    """As `llamero bench tokenizer` reads them: a line of .jsonl each, any other file as one."""
    with open(path, encoding="utf-8", newline="") as file:
        if not path.endswith(".jsonl"):
            return [file.read()]
        return [json.loads(line)["text"] for line in file if line.strip()]


def read_ranks(path):
    with open(path, "rb") as file:
        pairs = (line.split() for line in file if line.strip())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}


def load_tiktoken(ranks, threads):
    import tiktoken

    encoding = tiktoken.Encoding(
        "ranks", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads), list


def printable():
    """What byte-level vocabularies in JSON write for each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    table = {byte: chr(byte) for byte in shown}
    table.update((byte, chr(256 + i)) for i, byte in enumerate(hidden))
    return table


def load_tokenizers(ranks, threads):
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    table = printable()
    name = {token: "".join(table[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(name[left], name[right]) for left, right in known]
    vocabulary = {name[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # The fast form leaves offsets out.
    return tokenizer.encode_batch_fast, lambda encoded: encoded.ids


def load_quicktok(ranks, threads):
    import quicktok

    tokenizer = quicktok.get_encoding("llama3")

    def encode(texts):
        tokens, offsets = tokenizer.encode_batch(texts, threads=threads)
        return Batch(tokens, offsets)

    return encode, lambda ids: ids.tolist()


class Batch:
    """The ids of all documents in one array, as quicktok gives them."""

    def __init__(self, tokens, offsets):
        self.tokens, self.offsets = tokens, offsets

    def __iter__(self):
        for begin, end in zip(self.offsets[:-1], self.offsets[1:]):
            yield self.tokens[begin:end]


def versions(package):
    from importlib.metadata import version

    return version({"quicktok": "quicktok-v1"}.get(package, package))


LOADERS = {
    "tiktoken": load_tiktoken,
    "tokenizers": load_tokenizers,
    "quicktok": load_quicktok,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=LOADERS, required=True)
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--threads", type=int, default=peer.all_threads())
    parser.add_argument("--ids", help="JSON lines {ids} to compare each document with; nothing is timed")
    args = parser.parse_args()

    documents = read_documents(args.text)
    size = sum(len(text.encode()) for text in documents)
    begun = time.perf_counter()
    encode, ids_of = LOADERS[args.peer](read_ranks(args.tokenizer), args.threads)
    load_s = time.perf_counter() - begun
    result = {"peer": args.peer, "version": versions(args.peer), "threads": args.threads}
    result.update(documents=len(documents), bytes=size, load_s=load_s)
    if args.ids:
        with open(args.ids, encoding="utf-8") as file:
            ours = [json.loads(line)["ids"] for line in file]
        if len(ours) != len(documents):
            raise SystemExit("%d lines of ids, %d documents" % (len(ours), len(documents)))
        differ = [i for i, (a, b) in enumerate(zip(encode(documents), ours)) if ids_of(a) != b]
        peer.emit(**result, differing=len(differ), first_differing=differ[0] if differ else None)
        return
    encode(documents[: max(1, len(documents) // 50)] if len(documents) > 1 else [documents[0][:1_000_000]])
    begun = time.perf_counter()
    encoded = encode(documents)
    encode_s = time.perf_counter() - begun
    result.update(
        encode_s=encode_s,
        mb_per_s=size / 1e6 / encode_s,
        tokens=sum(len(ids_of(ids)) for ids in encoded),
        peak_memory_bytes=peer.peak_memory_bytes(),
    )
    peer.emit(**result)


if __name__ == "__main__":
    main()
