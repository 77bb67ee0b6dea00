"""Chinese prompts in the grammar of the training captions, put into its English.

The grammar is small, so a table of words and the order of a clause suffice: what stands where is said with
the reference first in Chinese ("B to its left has A", "A is at B's left"), and last in English.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_RUN = re.compile(f"[{_HAN}][{_HAN}\u3001\u3002\uff0c\uff1b\\s]*")


@functools.cache
def read_words() -> dict[str, tuple[str, str]]:
    """Chinese word -> (kind, English), of chinese.json beside this file."""
    kinds = json.loads(Path(__file__).with_name("chinese.json").read_text(encoding="utf-8"))
    return {
        word: (kind, english)
        for kind, words in kinds.items()
        for english, several in words.items()
        for word in several
    }


@dataclass
class Clause:
    """What a run of Chinese text names, in its order."""

    objects: list[str] = field(default_factory=list)
    relation: tuple[str, str, int, int] | None = None  # English, Chinese, index of the subject, the reference
    endings: list[str] = field(default_factory=list)  # chain, then place
    unread: list[str] = field(default_factory=list)


def has_chinese(text: str) -> bool:
    return bool(_RUN.search(text))


def translate_chinese(text: str) -> tuple[str, list[str]]:
    """The text with its Chinese parts in the captions' English, and the Chinese words outside the grammar."""
    unread: list[str] = []

    def put(match: re.Match) -> str:
        clause = read_clause(match[0])
        unread.extend(clause.unread)
        return f" {write_clause(clause)} "

    return " ".join(_RUN.sub(put, text).split()), unread


def split_chinese(text: str) -> list[tuple[str, str, str]]:
    """(kind, English, Chinese) of each word, the longest that the tables have; kind "" outside them."""
    table, words, i = read_words(), [], 0
    longest = max(map(len, table))
    while i < len(text):
        size = next((n for n in range(longest, 0, -1) if text[i : i + n] in table), 0)
        if size:
            words.append((*table[text[i : i + size]], text[i : i + size]))
        elif re.match(f"[{_HAN}]", text[i]):
            if words and words[-1][0] == "":
                words[-1] = ("", "", words[-1][2] + text[i])
            else:
                words.append(("", "", text[i]))
        i += max(1, size)
    return words


def read_clause(text: str) -> Clause:
    """The objects, their relation, chain and place of a run of Chinese text."""
    clause, words, is_at = Clause(), {"size": "", "shiny": "", "color": ""}, False
    for kind, english, chinese in split_chinese(text):
        if kind in words:
            words[kind] = english
        elif kind == "shape":
            clause.objects.append(_name(*words.values(), english))
            words = dict.fromkeys(words, "")
        elif kind == "relation" and clause.relation is None:
            count = len(clause.objects)
            clause.relation = (english, chinese, count - 2 if is_at else count, count - 1)
        elif kind in ("chain", "place"):
            clause.endings.append(english)
        elif kind in ("", "relation"):
            clause.unread.append(chinese)
        is_at = (is_at or kind == "at") and kind != "place"
    if clause.relation and not _fits(clause):
        clause.unread.append(clause.relation[1])
        clause.relation = None
    return clause


def _fits(clause: Clause) -> bool:
    """Whether both objects of the relation are there."""
    return all(0 <= index < len(clause.objects) for index in clause.relation[2:])


def _name(*words: str) -> str:
    name = " ".join(filter(None, words))
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_clause(clause: Clause) -> str:
    """The clause as a caption says it."""
    return " ".join([_join(_pair(clause)), *sorted(clause.endings, key=lambda words: "from" not in words)])


def _pair(clause: Clause) -> list[str]:
    """The objects, the two of the relation as one phrase, which comes first."""
    if clause.relation is None:
        return clause.objects
    words, _, subject, reference = clause.relation
    pair = f"{clause.objects[subject]} {words} {clause.objects[reference]}"
    others = [name for i, name in enumerate(clause.objects) if i not in (subject, reference)]
    return [pair, *others]


def _join(phrases: Sequence[str]) -> str:
    *first, last = phrases or [""]
    return f"{', '.join(first)} and {last}" if first else last
