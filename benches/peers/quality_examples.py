"""Examples of good and poor text for `llamero curate train-classifier`, from test data: none of them is a document that people labelled.

    quality_examples.py --data FOLDER --set articles --out articles.jsonl

articles      1: parts of the article texts that people copied out of 60 web pages; 0: the rest of the same pages
encyclopaedia 1: parts of wikitext-2; 0: parts of web documents (dolma's samples) and the rest of the 60 pages
prose         1: articles, wikitext-2, speeches; 0: the rest of the pages, and of web archives what their pages say
"""

import argparse
import glob
import gzip
import html
import json
import os
import re
import zipfile

import peer

PART = 1500


def gunzip(path):
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return file.read()


def parts(text, size=PART):
    """Whole lines, about `size` characters each."""
    part = ""
    for line in text.split("\n"):
        part += line + "\n"
        if len(part) > size:
            yield part.strip()
            part = ""
    if len(part) > size // 5:
        yield part.strip()


def visible(source):
    """What a page shows, a block a line."""
    text = re.sub(r"(?is)<(script|style|head|noscript|svg)\b.*?</\1>|<!--.*?-->", " ", source)
    text = re.sub(r"(?i)<(/?(p|div|li|ul|h\d|tr|td|section|article|header|footer|nav)|br)\b[^>]*>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return [line for line in lines if line]


def pages(data):
    root = os.path.join(data, "corpora/html-extraction")
    truth = json.loads(gunzip(os.path.join(root, "ground-truth.json.gz")))
    for name, page in sorted(truth.items()):
        path = os.path.join(root, "html", name + ".html.gz")
        if os.path.exists(path):
            article = page.get("articleBody") or ""
            words = set(re.sub(r"\s+", " ", line).strip() for line in article.split("\n"))
            rest = [line for line in visible(gunzip(path)) if line not in words]
            yield article, "\n".join(rest)


def web(data):
    for path in sorted(glob.glob(os.path.join(data, "corpora/dolma-tests/**/*.gz"), recursive=True)):
        if "/documents/" in path or "multiple_files" in path:
            for line in gunzip(path).splitlines():
                yield json.loads(line)["text"]


def archives(data):
    for path in sorted(glob.glob(os.path.join(data, "corpora/dolma-tests/warc/*.gz"))):
        for record in gunzip(path).split("WARC/1.0"):
            if "WARC-Type: response" in record and "<html" in record.lower():
                yield "\n".join(visible(record[record.lower().index("<html") :]))


def wikitext(data):
    for path in sorted(glob.glob(os.path.join(data, "corpora/wikitext-2/*.gz"))):
        text = gunzip(path).replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
        yield re.sub(r" ([.,;:!?)])", r"\1", text)


def speeches(data):
    for name in ("state_union", "inaugural"):
        with zipfile.ZipFile(os.path.join(data, "corpora/nltk", name + ".zip")) as files:
            for file in sorted(files.namelist()):
                if file.endswith(".txt") and "README" not in file:
                    yield files.read(file).decode("utf-8", errors="replace")


def examples(data, which):
    articles, rests = map(list, zip(*pages(data)))
    if which == "articles":
        return articles, rests
    if which == "encyclopaedia":
        return list(wikitext(data)), list(web(data)) + rests
    return articles + list(wikitext(data)) + list(speeches(data)), rests + list(archives(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--set", choices=["articles", "encyclopaedia", "prose"], required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    good, poor = ([part for text in texts for part in parts(text)] for texts in examples(args.data, args.set))
    # As many of each, evenly taken.
    count = min(len(good), len(poor))
    lines = []
    for label, all_parts in (("1", good), ("0", poor)):
        step = len(all_parts) / count
        lines += [{"text": all_parts[int(at * step)], "label": label} for at in range(count)]
    with open(args.out, "w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    peer.emit(good=len(good), poor=len(poor), examples=len(lines))


if __name__ == "__main__":
    main()
