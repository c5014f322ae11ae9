"""What no normalizer, `basic` and the language's own one each do to real transcripts.

    python benchmarks/normalizers.py [CORPUS]

CORPUS holds the audio folders named below as NAME/SPLIT/metadata.csv; no audio is read. Prints the tables of
docs/normalizers.md and writes results/normalizers.json.
"""

from __future__ import annotations

import argparse
import csv
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from results_file import write_results
from sotto.text import Normalizer, get_normalizer
from sotto.text.rules import without_signs

CORPORA = ("common_voice_hi", "common_voice_indic", "msc_malayalam", "common_voice_zh")
ENGLISH_NAMES = {
    "hi": "Hindi",
    "as": "Assamese",
    "or": "Odia",
    "pa-IN": "Punjabi",
    "ta": "Tamil",
    "ml": "Malayalam",
    "zh-CN": "Chinese",
}
# Texts that show one rule or more each, by the end of their file name.
EXAMPLES = (
    "common_voice_hi_23827474.opus",
    "common_voice_as_20878096.opus",
    "02e029e0-2c73-45bb-b2a4-5dcae62c3316.opus",
    "common_voice_zh-CN_18641897.opus",
)


def read_texts(corpus: Path) -> dict[str, dict[str, str]]:
    """Language -> file name -> text, of all splits; languages in the order of `CORPORA`."""
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for name in CORPORA:
        for metadata in sorted((corpus / name).glob("*/metadata.csv")):
            with metadata.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    texts[row["language"]][row["file_name"]] = row["text"]
    return texts


def count(texts: Iterable[str], own: Normalizer) -> dict[str, Any]:
    """Words, texts whose number of words changes, marks, and which words can no longer be told apart.

    A sign between spaces (Odia's danda mostly is) does not count as a word of the raw text.
    """
    raw = [unicodedata.normalize("NFC", text) for text in texts]
    ways = {"raw": raw} | {
        name: [f(text) for text in raw] for name, f in (("basic", get_normalizer("basic")), ("own", own))
    }
    vocabulary = sorted({word for text in ways["own"] for word in text.split()})
    words = {way: [len(text.split()) for text in those] for way, those in ways.items()}
    words["raw"] = [sum(map(_is_spoken, text.split())) for text in raw]
    return {
        "normalizer": own.describe(),
        "texts": len(raw),
        "words": {way: sum(counts) for way, counts in words.items()},
        "texts_with_another_word_count": {way: _differing(words[way], words["raw"]) for way in ("basic", "own")},
        "marks": {way: sum(map(_marks, those)) for way, those in ways.items()},
        "characters": {way: sum(map(len, those)) for way, those in ways.items()},
        "distinct_words": len(vocabulary),
        "distinct_words_basic_makes_equal_to_another": _merged(vocabulary),
        "distinct_words_in_two_encodings": _encoded_twice(raw, own),
    }


def _is_spoken(word: str) -> bool:
    return any(unicodedata.category(character)[0] in "LN" for character in word)


def _differing(counts: list[int], others: list[int]) -> int:
    return sum(one != other for one, other in zip(counts, others, strict=True))


def _marks(text: str) -> int:
    return sum(unicodedata.category(character).startswith("M") for character in text)


def _merged(vocabulary: list[str]) -> int:
    basic = get_normalizer("basic")
    forms = Counter(basic(word) for word in vocabulary)
    return sum(forms[basic(word)] > 1 for word in vocabulary)


def _encoded_twice(texts: list[str], own: Normalizer) -> int:
    """Words that stand in the texts as two strings, both NFC and without signs, which `own` makes one."""
    strings: dict[str, set[str]] = defaultdict(set)
    for word in {word for text in texts for word in without_signs(text.lower()).split()}:
        strings[own(word)].add(word)
    return sum(len(those) > 1 for those in strings.values())


def word_table(counts: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| language | texts | words: raw | `basic` | ours | texts whose word count changes: `basic` | ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for language, c in counts.items():
        changed = c["texts_with_another_word_count"].values()
        shares = (f"{texts} ({100 * texts / c['texts']:.0f} %)" for texts in changed)
        lines.append(_row(ENGLISH_NAMES[language], c["texts"], *c["words"].values(), *shares))
    return "\n".join(lines)


def letter_table(counts: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| language | marks: raw | `basic` | ours | distinct words | made equal by `basic` | in two encodings |",
        "|---|---|---|---|---|---|---|",
    ]
    for language, c in counts.items():
        if not c["marks"]["raw"]:
            continue
        distinct = ("distinct_words", "distinct_words_basic_makes_equal_to_another", "distinct_words_in_two_encodings")
        lines.append(_row(ENGLISH_NAMES[language], *c["marks"].values(), *(c[key] for key in distinct)))
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def examples(texts: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    basic = get_normalizer("basic")
    return [
        {
            "language": language,
            "file": name,
            "raw": text,
            "basic": basic(text),
            "own": get_normalizer(None, language)(text),
        }
        for language, those in texts.items()
        for name, text in those.items()
        if name.endswith(EXAMPLES)
    ]


def example_table(shown: list[dict[str, str]]) -> str:
    lines = ["| | |", "|---|---|"]
    for example in shown:
        lines.append(f"| {ENGLISH_NAMES[example['language']]} | {visible(example['raw'])} |")
        lines.append(f"| `basic` | {visible(example['basic'])} |")
        lines.append(f"| `{get_normalizer(None, example['language']).name}` | {example['own']} |")
    return "\n".join(lines)


def visible(text: str) -> str:
    """Joiners written out, since a page does not show them."""
    return text.replace("\u200d", "`ZWJ`").replace("\u200c", "`ZWNJ`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", default=Path("../shared/corpus"))
    arguments = parser.parse_args()
    texts = read_texts(arguments.corpus)
    if not texts:
        parser.error(f"{arguments.corpus} holds none of {', '.join(CORPORA)}: give the folder that does")
    counts = {language: count(those.values(), get_normalizer(None, language)) for language, those in texts.items()}
    shown = examples(texts)
    write_results("normalizers", {"counts": counts, "examples": shown})
    print(word_table(counts), letter_table(counts), example_table(shown), sep="\n\n")


if __name__ == "__main__":
    main()
