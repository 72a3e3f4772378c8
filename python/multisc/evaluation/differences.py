"""Word-level differences between a caption that was sent and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

Kind = Literal["same", "changed", "added", "missing", "repaired"]


@dataclass(frozen=True)
class Piece:
    """A run of words of one kind.

    Args:
        kind: "same" as sent; "changed" into other words; "added", sent by nobody; "missing": words that were sent and
            are not there; "repaired": as sent again after having arrived otherwise.
        words: the words of the text, of the sent caption when missing.
        sent: for "changed", the words that were sent.
    """

    kind: Kind
    words: str
    sent: str = ""


def compare(sent: str, text: str, before: str | None = None) -> list[Piece]:
    """Mark how ``text`` differs from what was sent.

    Args:
        sent: the caption at the transmitter.
        text: the caption at some stage of the receiver.
        before: the caption at the stage before; where it differed from what was sent and ``text`` does not, the words
            are marked as repaired.

    Returns:
        Pieces in reading order. Words are what white space separates; upper and lower case count as equal.
    """
    reference, words = sent.split(), text.split()
    wrong_before = set() if before is None else _wrong(reference, before.split())
    pieces: list[Piece] = []
    for tag, i, i_end, j, j_end in _operations(reference, words):
        here, there = " ".join(words[j:j_end]), " ".join(reference[i:i_end])
        if tag == "replace":
            pieces.append(Piece("changed", here, there))
        elif tag == "insert":
            pieces.append(Piece("added", here))
        elif tag == "delete":
            pieces.append(Piece("missing", there))
        else:
            for offset in range(i_end - i):
                kind: Kind = "repaired" if i + offset in wrong_before else "same"
                word = words[j + offset]
                if pieces and pieces[-1].kind == kind:
                    pieces[-1] = Piece(kind, f"{pieces[-1].words} {word}")
                else:
                    pieces.append(Piece(kind, word))
    return pieces


def _operations(reference: list[str], words: list[str]) -> list[tuple[str, int, int, int, int]]:
    matcher = SequenceMatcher(None, [w.lower() for w in reference], [w.lower() for w in words], autojunk=False)
    return [(tag, i, i_end, j, j_end) for tag, i, i_end, j, j_end in matcher.get_opcodes()]


def _wrong(reference: list[str], words: list[str]) -> set[int]:
    """Positions in the sent caption whose words did not arrive as sent."""
    return {
        position
        for tag, i, i_end, _, _ in _operations(reference, words)
        if tag in ("replace", "delete")
        for position in range(i, i_end)
    }
