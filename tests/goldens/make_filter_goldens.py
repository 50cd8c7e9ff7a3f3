"""Verdicts of datatrove's filters, which `crates/curate` must give too.

Without arguments: writes `filters.json` beside this script, from small texts made here.
With a JSONL file of {"text"} and an output path: the verdicts on those texts, for the test `agrees_on_a_corpus`:

    python make_filter_goldens.py corpus.jsonl verdicts.jsonl
    LLAMERO_FILTER_VERDICTS=verdicts.jsonl cargo test --release -p llamero-curate agrees_on_a_corpus -- --nocapture
"""

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.text import split_into_words

FILTERS = {
    "gopher_quality": GopherQualityFilter(),
    "gopher_repetition": GopherRepetitionFilter(),
    "c4": C4QualityFilter(),
    "fineweb": FineWebQualityFilter(),
}


def judge(text, with_words=True):
    record = {"text": text}
    for name, rules in FILTERS.items():
        document = Document(text=text, id="0")
        try:
            verdict = rules.filter(document)
        except ZeroDivisionError:
            # A text without a word: datatrove stops, llamero has a rule for it.
            record[name] = {"reason": "undefined"}
            continue
        if verdict is True:
            record[name] = {"reason": None, "text": document.text} if name == "c4" else {"reason": None}
        else:
            record[name] = {"reason": verdict[1]}
    record["words"] = split_into_words(text) if with_words else len(split_into_words(text))
    return record


NOUNS = "shepherd mule trader sister stranger river bridge winter market blanket fence storm lamb letter song".split()
VERBS = "found lost carried watched followed sold remembered crossed mended counted painted heard forgot".split()
ENDS = ["before the snow came", "and nobody asked why", "to have some peace", "with a little help", "that was all of it"]


def herd(count, seed=0):
    """Prose of some sentences that have little in common."""
    sentences = []
    for i in range(count):
        k = seed * 41 + i
        one, two, three = NOUNS[k * 7 % 15], NOUNS[(k * 11 + 4) % 15], NOUNS[(k * 2 + k // 5) % 15]
        sentences.append(
            f"{['Once', 'Later', 'Then', 'Soon', 'Often', 'Again', 'There'][k % 7]} {'the' if k % 3 else 'every'} {one} "
            f"{VERBS[k * 5 % 13]} {'our' if k % 2 else 'that'} {two} {'near' if k % 4 else 'beyond'} "
            f"{'some' if k % 5 else 'no'} {three} {ENDS[k % 5] if k % 3 else 'of ' + VERBS[k % 13]}."
        )
    return sentences


def texts():
    prose = herd(12)
    yield "\n".join(prose)
    yield " ".join(prose)
    yield "\n\n".join(prose)
    yield "\n".join(herd(3))
    yield "Too short."
    yield "\n".join(f"- {line}" for line in prose)
    yield "\n".join(f"• {line}" for line in prose)
    yield "\n".join(line[:-1] + "..." for line in prose)
    yield "\n".join(line[:-1] + "…" for line in prose)
    yield "\n".join(prose[:4] * 4)
    yield "\n\n".join(prose[:4] * 3 + prose[4:])
    yield "\n".join(prose[:10] + [prose[0]])
    yield " ".join(["# tag"] * 30 + prose)
    yield " ".join(sentence + " ###############" for sentence in prose)
    yield " ".join(sentence + " .... ... ... … …" for sentence in prose)
    yield " ".join(prose[:5]) + "\n" + "\n".join(f"No {i}." for i in range(30))
    yield "\n".join(prose[:6] + ["Short it is, I say."] * 3 + prose[6:])
    yield "\n\n".join(prose[:6] + [prose[1]] * 2 + prose[6:])
    yield "\n".join(" ".join(herd(4, i)) + "\n" * (i % 4) for i in range(8))
    yield "\n".join("\n".join(sentence.split(" near ")) + "\n\n" for sentence in prose)
    yield " ".join(["wait..."] * 40 + prose)
    yield "\n".join(prose + ["{ this is code }."])
    yield "\n".join(prose + ["Please enable Javascript in your browser to go on."])
    yield "\n".join(prose + ["This site uses cookies, see our privacy policy."])
    yield "\n".join(prose[:6] + ["Lorem ipsum dolor sit amet."] + prose[6:])
    yield "\n".join(line + "[12][edit]" for line in prose)
    yield "\n".join(line + " [citation needed]" for line in prose)
    yield "\n".join(word for line in prose for word in line.split())
    yield "\n".join(prose + ["x" * 1200 + " is a long word."])
    yield " ".join(["1234 5678 90"] * 40 + prose[:5])
    yield " ".join("incomprehensibilities counterrevolutionaries" for _ in range(60))
    yield " ".join("a b c d e f" for _ in range(60))
    yield "the llama walks " * 60
    yield "the llama walks over the green hill with me and you and nobody else today " * 8
    yield "Menu\nHome\nAbout us\nContact\nNews\n" * 3 + "\n".join(prose[:6])
    yield "\r\n".join(prose)
    yield "\u2028".join(prose) + "\u0085" + " ".join(herd(4, 5))
    yield "Zażółć gęślą jaźń. " * 3 + "Čeština má háčky a čárky, ale to je v pořádku. Ελληνικά κείμενα υπάρχουν επίσης. " * 4
    yield "这是一个关于羊驼的故事。它们住在高原上。" * 20
    yield "नमस्ते दुनिया। यह एक वाक्य है। " * 20
    yield (
        "Mr. Smith doesn't think it's well-known; he said: \"They've seen e.g. the U.S. embassy (at 10 p.m.), "
        "haven't they?\" It cost $5.00, or 20% of 1,000... See http://example.com/a-b?c=d or mail me@example.org. "
        "I can't, won't and shouldn't. John's dogs' 5km walk -- no, 3-4 km! #tag @me x=y foo/bar 'quoted' “curly” it’s. "
    ) * 3
    yield "I'm sure you're right, she'll come, we'd go, and cannot dont im gonna. A+ R&D AT&T C++ end.Next fast,or a--b too."
    yield "  \n \n  "
    yield "*** !!! ???"
    yield "[1] first [23] second [edit] third. (a) b) c] {d} <e> f; g: h, i! j? k… l— m– n- o"


def main():
    if len(sys.argv) == 3:
        start, count = time.perf_counter(), 0
        with open(sys.argv[1]) as source, open(sys.argv[2], "w") as out:
            for line in source:
                out.write(json.dumps(judge(json.loads(line)["text"], with_words=False)) + "\n")
                count += 1
        print(f"{count} documents, {count / (time.perf_counter() - start):.0f} a second", file=sys.stderr)
        return
    records = [judge(text) for text in texts()]
    path = Path(__file__).parent / "filters.json"
    path.write_text(json.dumps(records, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
