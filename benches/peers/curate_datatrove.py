"""datatrove beside `llamero bench curate`: Gopher repetition, Gopher quality and C4, or MinHash deduplication; one worker.

    curate_datatrove.py --stage filters --text documents.jsonl
    curate_datatrove.py --stage minhash --text documents.jsonl
    curate_datatrove.py --stage filters --text documents.jsonl --judged ours.jsonl

Both stages read the documents from JSON Lines and write the kept ones as JSON Lines. MinHash has 14 bands of 8 rows over
5-grams, with 64-bit hashes. With `--judged`, where each line is {"id", "reason"} or {"id", "text"}, nothing is timed: every
document is judged again, and what differs is counted by both sides' reasons. Prints one JSON object.
"""

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
import time

import peer


def filters():
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter

    return [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter()]


def run(name, folder, steps, tasks=1):
    from datatrove.executor import LocalPipelineExecutor

    logs = os.path.join(folder, "log-" + name)
    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir=logs).run()


def run_filters(folder, source):
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    out = os.path.join(folder, "out")
    run("filters", folder, [JsonlReader(source), *filters(), JsonlWriter(out, compression=None)])
    return out


def run_minhash(folder, source):
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(
        hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8
    )
    signatures, buckets, removed, out = (
        os.path.join(folder, name) for name in ("signatures", "buckets", "removed", "out")
    )
    run("signatures", folder, [JsonlReader(source), MinhashDedupSignature(signatures, config=config)])
    run("buckets", folder, [MinhashDedupBuckets(signatures, buckets, config=config)], tasks=14)
    run("clusters", folder, [MinhashDedupCluster(buckets, removed, config=config)])
    run(
        "filter",
        folder,
        [JsonlReader(source), MinhashDedupFilter(removed), JsonlWriter(out, compression=None)],
    )
    return out


def warm_up(stage):
    """Loads what is imported or read when it is first used."""
    from datatrove.data import Document

    if stage == "filters":
        for step in filters():
            step.filter(Document(text="A few words. And a few more.", id=""))
    else:
        import datatrove.pipeline.dedup  # noqa: F401


def timed(args):
    folder = tempfile.mkdtemp(prefix="datatrove-")
    try:
        source = os.path.join(folder, "in")
        os.mkdir(source)
        shutil.copy(args.text, os.path.join(source, "documents.jsonl"))
        with open(args.text, encoding="utf-8") as lines:
            documents = sum(1 for _ in lines)
        warm_up(args.stage)
        begun, busy = time.perf_counter(), time.process_time()
        out = {"filters": run_filters, "minhash": run_minhash}[args.stage](folder, source)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - busy
        kept = 0
        for name in os.listdir(out):
            with open(os.path.join(out, name), encoding="utf-8") as lines:
                kept += sum(1 for _ in lines)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    peer.emit(
        documents=documents,
        kept=kept,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=peer.peak_memory_bytes(),
        version=version(),
    )


def version():
    import importlib.metadata

    return "datatrove " + importlib.metadata.version("datatrove")


def compared(args):
    from datatrove.data import Document

    steps, different, examples, texts = filters(), collections.Counter(), {}, 0
    documents = kept = 0
    with open(args.text, encoding="utf-8") as lines, open(args.judged, encoding="utf-8") as judged:
        ours = {line["id"]: line for line in map(json.loads, judged)}
        for line in map(json.loads, lines):
            documents += 1
            document, reason = Document(text=line["text"], id=line["id"]), None
            for step in steps:
                result = step.filter(document)
                if result is not True and not (isinstance(result, tuple) and result[0]):
                    reason = result[1] if isinstance(result, tuple) else step.name
                    break
            kept += reason is None
            own = ours[line["id"]].get("reason")
            if own != reason:
                pair = "%s, not %s" % (own or "kept", reason or "kept")
                different[pair] += 1
                examples.setdefault(pair, line["id"])
            elif reason is None:
                texts += ours[line["id"]]["text"] != document.text
    decided = sum(count for pair, count in different.items() if "kept" in pair)
    peer.emit(
        documents=documents,
        kept=kept,
        kept_by_one_only=decided,
        other_reasons=sum(different.values()) - decided,
        other_texts=texts,
        pairs=dict(different.most_common()),
        examples=examples,
        version=version(),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=["filters", "minhash"], required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--judged", help="what we made of each document; compared, and nothing is timed")
    parser.add_argument("--threads", type=int, default=1, choices=[1])
    args = parser.parse_args()
    from loguru import logger

    import datatrove.utils.logging  # noqa: F401, it adds a handler, which goes below

    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    (compared if args.judged else timed)(args)


if __name__ == "__main__":
    main()
