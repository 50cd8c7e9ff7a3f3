"""Documents for `bench curate` from the text files of some folders, the same for the same files.

    curate_documents.py --out documents.jsonl --count 20000 FOLDER...

Markup of HTML and of manual pages is stripped. Texts are cut between paragraphs into documents of 800 to 4,500 bytes (about 2.85 KB on average);
a tenth are exact copies and a tenth copies of which 3 % of the words are changed. Prints one JSON object.
"""

import argparse
import gzip
import hashlib
import html
import json
import os
import random
import re

import peer

ENDINGS = (".txt", ".md", ".rst", ".html", ".txt.gz", ".md.gz", ".gz")


def text_of(path):
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        text = file.read(4_000_000).decode("utf-8")
    if path.endswith(".html"):
        text = re.sub(r"<(script|style|nav|head)\b.*?</\1>", " ", text, flags=re.S)
        text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</(p|div|li|h\d|tr|pre)>", "\n\n", text)))
        text = re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+", " ", text))
    elif re.search(r"\.\d\w*\.gz$", path):
        # A manual page: requests go, but for the words they set in another face; a blank line before a paragraph.
        text = re.sub(r"^\.(PP|P|LP|TP|IP|SH|SS|sp)\b.*$", "", text, flags=re.M)
        text = re.sub(r"^\.(B|I|BR|IR|RB|BI|IB)\b *", "", text, flags=re.M)
        text = re.sub(r"^[.'].*\n", "", text, flags=re.M)
        text = re.sub(r"\\(f\[?\w*\]?|[&%|^/,]|s[+-]?\d)", "", text).replace("\\-", "-").replace("\\(aq", "'")
    if "\0" in text or text.startswith("%PDF"):
        raise ValueError("no text")
    return text


def hash_of(text):
    return hashlib.sha256(text.encode()).digest()[:16]


def files_of(folder):
    found = []
    for place, _, names in os.walk(folder):
        found += [os.path.join(place, name) for name in names if name.endswith(ENDINGS)]
    return sorted(path for path in found if not os.path.islink(path) and os.path.getsize(path) > 500)


def parts_of(text, draw):
    part, enough = "", draw.randrange(800, 4500)
    for paragraph in text.split("\n\n"):
        part += paragraph + "\n\n"
        if len(part) > enough:
            if len(part) < 12_000:
                yield part.strip()
            part, enough = "", draw.randrange(800, 4500)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("folders", nargs="+")
    args = parser.parse_args()
    draw = random.Random(0)
    real = int(args.count * 0.8)
    base, seen = [], set()
    for folder in args.folders:
        # No folder gives more than its share, so that the text is mixed.
        own = []
        files = files_of(folder)
        draw.shuffle(files)
        for path in files:
            try:
                text = text_of(path)
            except (OSError, EOFError, ValueError):
                continue
            for part in parts_of(text, draw):
                if (key := hash_of(part)) not in seen:
                    seen.add(key)
                    own.append(part)
            if len(own) > 2 * real // len(args.folders):
                break
        base += own
    if len(base) < real:
        raise SystemExit("only %d documents in these folders; name more" % len(base))
    draw.shuffle(base)
    base = base[:real]
    documents = list(base)
    while len(documents) < args.count:
        text = draw.choice(base)
        if len(documents) % 2:
            words = text.split(" ")
            text = " ".join(
                word if draw.random() > 0.03 else "changed%d" % draw.randrange(1000) for word in words
            )
        documents.append(text)
    draw.shuffle(documents)
    with open(args.out, "w", encoding="utf-8") as out:
        for number, text in enumerate(documents):
            out.write(json.dumps({"id": "%06d" % number, "text": text}, ensure_ascii=False) + "\n")
    size = sum(len(text.encode()) for text in documents)
    peer.emit(documents=len(documents), bytes=size, mean_bytes=size / len(documents))


if __name__ == "__main__":
    main()
