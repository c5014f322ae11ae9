"""Sentences for synthetic voices: clauses of the corpus transcripts, splices of two of them, and a small grammar.

A sentence is lower-case words and apostrophes only, and nothing in it is read otherwise than it is written. Words come
from the training transcripts of the corpus and from the grammar; no sentence is the text of a validation or test clip
of the corpus. Clauses are for training. A splice or a sentence of the grammar has one role, which depends on its text
alone, so that no seed brings a test sentence into training; those for validation and test are no part of any training
transcript and hold only familiar words.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sotto.errors import SottoError

ROLES = ("test", "validation", "train")
SHORTEST, LONGEST = 2, 14  # words of a sentence
FAMILIAR = 3  # clauses that hold a word which validation and test may hold
HELD_OUT_SHARE = 20  # one new sentence in so many is for the test, and one for validation
PATIENCE = 2000  # draws in a row that bring nothing new

# Two clauses may change their ends from one of these words on.
JOINTS = frozenset(str.split("and but or that which who when where because if in on at to of for with by from as than"))
# Voices say these as something else than a word, or each in a way of its own.
NOT_AS_WRITTEN = frozenset(
    str.split("ok usa uk eu etc esq co hon gen ii iii iv vi vii viii ix xi xii xiv xv xvi uh um eh ah hm")
)
WORD = re.compile(r"(?=.*[aeiouy])[a-z]+(?:'[a-z]+)*")
ABBREVIATION = re.compile(r"\b[A-Za-z]\.[A-Za-z]\b")

# A word in capitals is a symbol, and stands for one of the alternatives after its name.
RULES = """
SENTENCE: PERSON SAW the QUALITY THING PLACE | PERSON SAW a QUALITY THING and a QUALITY THING
SENTENCE: PERSON went to the SITE BEFORE | PERSON GAVE the THING to PERSON BEFORE
SENTENCE: PERSON said that the THING was QUALITY | it was a QUALITY day and PERSON was at the SITE
SENTENCE: PERSON will DO the QUALITY THING LATER | we want to DO the THING PLACE
SENTENCE: do you know where PERSON put the QUALITY THING | did PERSON DO the THING PLACE
SENTENCE: please DO the QUALITY THING before you go to the SITE | let's go to the SITE and DO the THING
SENTENCE: there were NUMBER QUALITY people PLACE | i think the THING PLACE is very QUALITY
SENTENCE: the QUALITY THING is PLACE | the number is DIGIT DIGIT DIGIT DIGIT | DIGIT DIGIT DIGIT DIGIT DIGIT
PERSON: mark | kate | tom | mary | peter | john | lucy | mike | jack | bob | alice | tina | david | sandy | billy
PERSON: the boy | the old man | my mother | your father | his friend | the doctor | a young woman | our teacher
SAW: saw | found | bought | lost | wanted | loved | made | remembered | needed
GAVE: gave | sold | brought | showed
DO: find | buy | see | open | bring | keep | draw | leave | take
QUALITY: new | big | small | good | bad | beautiful | white | black | red | blue | strange | real | heavy | clean
THING: book | letter | house | door | picture | horse | dog | cat | car | table | fish | hat | cake | window | key
THING: coat | ship | box | clock | chair | bird | bottle | bag | garden | story
SITE: park | school | market | station | church | hospital | restaurant | beach | river | village | theatre | office
PLACE: in the SITE | near the SITE | behind the SITE | on the table | by the window | in your room | at home
BEFORE: today | last night | in the morning | on sunday | after the rain | before dinner | at seven o'clock | once again
LATER: today | tomorrow | in the morning | on monday | after dinner | at eight o'clock | next week | once again
NUMBER: two | three | four | five | six | seven | eight | nine | ten | eleven | twelve | fifteen | twenty | thirty
DIGIT: zero | one | two | three | four | five | six | seven | eight | nine
"""


def read_rules(rules: str) -> dict[str, tuple[str, ...]]:
    """The alternatives of each symbol."""
    grammar: dict[str, tuple[str, ...]] = {}
    for line in rules.strip().splitlines():
        symbol, alternatives = line.split(": ")
        grammar[symbol] = grammar.get(symbol, ()) + tuple(alternatives.split(" | "))
    return grammar


GRAMMAR = read_rules(RULES)


@dataclass(frozen=True)
class Source:
    """What sentences are made of."""

    clauses: tuple[str, ...]
    heads: tuple[tuple[str, str], ...]
    """the words before a joint, and the joint"""
    tails: dict[str, tuple[str, ...]]
    """the words from a joint on, by joint"""
    familiar: frozenset[str]
    said: str
    """all training transcripts, one after the other, for a search"""
    excluded: frozenset[str]
    """the texts of validation and test clips of the corpus"""


def read_transcripts(corpus: Path) -> tuple[list[str], list[str]]:
    """The English texts of all training splits of the corpus, and those of all other splits."""
    train: list[str] = []
    held_out: list[str] = []
    for metadata in sorted(corpus.glob("*/*/metadata.csv")):
        with metadata.open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file) if row["language"] == "en"]
        (train if metadata.parent.name == "train" else held_out).extend(texts)
    if not train:
        raise SottoError(f"no English training transcripts in {corpus}; it should hold NAME/train/metadata.csv")
    return train, held_out


def make_source(train: Iterable[str], held_out: Iterable[str]) -> Source:
    """Clauses, heads and tails of the training texts; nothing that occurs as a text in `held_out`."""
    train, held_out = list(train), list(held_out)
    excluded = {plain(text) for text in held_out} | {clause for text in held_out for clause in clauses_of(text)}
    kept = [text for text in train if plain(text) not in excluded]
    clauses = dict.fromkeys(clause for text in kept for clause in clauses_of(text) if clause not in excluded)
    heads, tails = [], defaultdict(list)
    for words in map(str.split, clauses):
        for position in joints(words):
            heads.append((" ".join(words[:position]), words[position]))
            tails[words[position]].append(" ".join(words[position:]))
    counts = Counter(word for clause in clauses for word in set(clause.split()))
    familiar = {word for word, count in counts.items() if count >= FAMILIAR} | grammar_words()
    return Source(
        clauses=tuple(clauses),
        heads=tuple(heads),
        tails={joint: tuple(ends) for joint, ends in tails.items()},
        familiar=frozenset(familiar),
        said=" | ".join(["", *(plain(text) for text in train), ""]),
        excluded=frozenset(excluded),
    )


def plain(text: str) -> str:
    """The text for comparisons: lower case, no punctuation."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.replace("’", "'").lower()))


def clauses_of(transcript: str) -> list[str]:
    """What stands between punctuation marks, as sentences; what would not be read as written is left out."""
    if ABBREVIATION.search(transcript):
        return []
    found = []
    for part in re.split(r"[^\w\s'’-]+|--+|\s-\s", transcript):
        raw = [word.strip("'") for word in re.split(r"[\s-]+", part.replace("’", "'")) if word.strip("'")]
        acronyms = not transcript.isupper() and any(len(word) > 1 and word.isupper() for word in raw)
        words = [word.lower() for word in raw]
        if not acronyms and all(map(read_as_written, words)):
            found += [" ".join(piece) for piece in shortened(words) if len(piece) >= SHORTEST]
    return found


def read_as_written(word: str) -> bool:
    """Whether a voice says the lower-case word as a word: no digits, no lone letters, no abbreviations."""
    return (len(word) > 1 or word in "ai") and WORD.fullmatch(word) is not None and word not in NOT_AS_WRITTEN


def shortened(words: list[str]) -> list[list[str]]:
    """The words in pieces of at most LONGEST, cut at the joint nearest the middle; nothing where there is none."""
    if len(words) <= LONGEST:
        return [words]
    cuts = joints(words)
    if not cuts:
        return []
    cut = min(cuts, key=lambda position: abs(2 * position - len(words)))
    return shortened(words[:cut]) + shortened(words[cut:])


def joints(words: list[str]) -> list[int]:
    """Where a joint begins the end of the clause, with at least two words on either side."""
    return [position for position in range(2, len(words) - 1) if words[position] in JOINTS]


def grammar_words() -> set[str]:
    return {word for lines in GRAMMAR.values() for line in lines for word in line.split() if not word.isupper()}


def role_of(text: str) -> str:
    """The role of a splice or of a sentence of the grammar, by the text alone."""
    lot = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT_SHARE
    return ROLES[min(lot, 2)]


def sentences(source: Source, role: str, seed: int) -> Iterator[str]:
    """Sentences of a role, each once, the same for the same seed. Raises SottoError where there are no more."""
    rng = np.random.default_rng([seed, ROLES.index(role)])
    kinds = (draw_clause, draw_splice, expand) if role == "train" else (draw_splice, expand)
    seen: set[str] = set()
    misses = 0
    while misses < PATIENCE:
        draw = kinds[rng.integers(len(kinds))]
        text = draw(source, rng)
        if text is None or text in seen or not allowed(source, text, role, new=draw is not draw_clause):
            misses += 1
            continue
        misses = 0
        seen.add(text)
        yield text
    raise SottoError(f"the corpus gives only {len(seen)} sentences for the role {role}; ask for fewer")


def allowed(source: Source, text: str, role: str, new: bool) -> bool:
    """Whether the sentence may be used in the role; `new` if it is no clause of the corpus."""
    words = text.split()
    if text in source.excluded or not SHORTEST <= len(words) <= LONGEST:
        return False
    if new and role_of(text) != role:
        return False
    return role == "train" or (source.familiar.issuperset(words) and f" {text} " not in source.said)


def draw_clause(source: Source, rng: np.random.Generator) -> str | None:
    return source.clauses[rng.integers(len(source.clauses))] if source.clauses else None


def draw_splice(source: Source, rng: np.random.Generator) -> str | None:
    """The head of one clause with the tail of another that goes on from the same joint."""
    if not source.heads:
        return None
    head, joint = source.heads[rng.integers(len(source.heads))]
    tails = source.tails[joint]
    return f"{head} {tails[rng.integers(len(tails))]}"


def expand(source: Source, rng: np.random.Generator, symbol: str = "SENTENCE") -> str:
    """A sentence of the grammar."""
    line = GRAMMAR[symbol][rng.integers(len(GRAMMAR[symbol]))]
    return " ".join(expand(source, rng, word) if word.isupper() else word for word in line.split())
