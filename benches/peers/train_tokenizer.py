"""`tokenizers` or `rustbpe` beside `llamero tokenizer train`: one training with Llama 3's pattern.

    train_tokenizer.py --by rustbpe --text FILE.jsonl --vocab-size 32768 --threads 2 --count-tokens

The size includes 256 special tokens, as ours does; the peer learns that many fewer. Reading the file is not timed, nor is
encoding it afterwards to count tokens. Lines are {"text": ...}, each a document; of plain text each line is one.
"""

import argparse
import json
import os
import time

from peer import all_threads, emit, peak_memory_bytes

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def documents(path):
    with open(path, encoding="utf-8", newline="") as lines:
        if path.endswith(".jsonl"):
            return [json.loads(line)["text"] for line in lines if line.strip()]
        return list(lines)


def with_tokenizers(texts, size):
    from tokenizers import Regex, Tokenizer, __version__, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )

    def count():
        parts = (texts[at : at + 256] for at in range(0, len(texts), 256))
        return sum(len(found.ids) for part in parts for found in tokenizer.encode_batch(part))

    return __version__, lambda: tokenizer.train_from_iterator(texts, trainer), count


def with_rustbpe(texts, size):
    import importlib.metadata

    import rustbpe

    trained = rustbpe.Tokenizer()

    def count():
        import tiktoken

        ranks = {bytes(token): rank for token, rank in trained.get_mergeable_ranks()}
        coder = tiktoken.Encoding("trained", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        return sum(len(coder.encode_ordinary(text)) for text in texts)

    version = importlib.metadata.version("rustbpe")
    return version, lambda: trained.train_from_iterator(iter(texts), size, pattern=PATTERN), count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--by", choices=["tokenizers", "rustbpe"], required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--threads", type=int, default=all_threads())
    parser.add_argument("--count-tokens", action="store_true")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = documents(args.text)
    size = args.vocab_size - 256
    version, train, count = {"tokenizers": with_tokenizers, "rustbpe": with_rustbpe}[args.by](texts, size)
    begun = time.perf_counter()
    train()
    seconds = time.perf_counter() - begun
    memory = peak_memory_bytes()
    result = {}
    if args.count_tokens:
        result["bytes_per_token"] = sum(len(text.encode()) for text in texts) / count()
    emit(train_seconds=seconds, peak_memory_bytes=memory, command="%s %s" % (args.by, version), **result)


main()
