"""Invented text for the tests of the Pile task."""

import hashlib

from harness.tasks.pile.corpora import Document

WORDS = ("lamp", "river", "copper", "ninth", "orchard", "velvet", "signal", "harbour", "moss", "quill", "amber", "dune")


def sentence(number: int, length: int) -> str:
    """Returns invented words that depend on `number` alone."""
    digest = hashlib.sha256(str(number).encode()).digest() * (length // 32 + 1)
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:length])


def document(number: int, subset: str = "made:A", length: int = 60) -> Document:
    text = f"{sentence(number, length)} number {number}."
    return {"text": text, "meta": {"pile_set_name": subset, "source": "made==1", "id": str(number)}}
