"""Wikitext to plain paragraphs. Standard library only.

Not a parser of the whole language: it keeps running prose and drops what a reader would not read aloud (templates,
tables, references, files, categories, the closing lists of links).
"""

import html
import re

# A reference, in both forms; the closed form first, or the open one would swallow up to the next </ref>.
_REFERENCE = re.compile(r"<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", re.S | re.I)
_BLOCK = re.compile(
    r"<(gallery|timeline|math|source|syntaxhighlight|pre|score|imagemap)\b[^<>]*>.*?</\1\s*>", re.S | re.I
)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_BREAK = re.compile(r"<br\s*/?>", re.I)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.I)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NAMESPACE = re.compile(r":?\s*(file|image|category|media|template|portal|[a-z]{2,3}(-[a-z]+)?)\s*:", re.I)
_URL_LINK = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]]*\s*([^\]]*)\]")
_EMPHASIS = re.compile(r"'{2,}")
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1\s*$", re.M)
_LIST_MARK = re.compile(r"^[*#:;]+[ \t]*", re.M)
_MAGIC = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"\s*\((?:[\s,;:]|&nbsp;)*\)")
_TABLE_EDGE = re.compile(r"^[ \t:]*(\{\||\|\})", re.M)
_TEMPLATE_EDGE = re.compile(r"\{\{|\}\}")
_CLOSING_SECTIONS = frozenset(
    (
        *("bibliography", "citations", "external links", "footnotes", "further reading", "gallery", "notes"),
        *("notes and references", "references", "see also", "sources", "works cited"),
    )
)


def plain_text(wikitext: str) -> str:
    """Returns the prose of an article: paragraphs and headings, separated by blank lines."""
    text = _COMMENT.sub("", wikitext)
    text = _BLOCK.sub("", _REFERENCE.sub("", text))
    text = _without(text, _TEMPLATE_EDGE, "{{")
    text = _without(text, _TABLE_EDGE, "{|")
    text = _without_links(text)
    text = _URL_LINK.sub(r"\1", text)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _MAGIC.sub("", _EMPHASIS.sub("", text))
    text = _without_closing_sections(text)
    text = _LIST_MARK.sub("", _HEADING.sub(r"\n\2\n", text))
    text = html.unescape(_EMPTY_BRACKETS.sub("", text)).replace("\xa0", " ")
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without(text: str, edge: re.Pattern[str], opener: str) -> str:
    """Returns the text without what lies between matching edges, nested ones included; a lone edge goes alone."""
    open_at: list[int] = []
    spans: list[tuple[int, int]] = []
    for match in edge.finditer(text):
        if match[0].lstrip(" \t:") == opener:
            open_at.append(match.start())
        elif open_at:
            spans.append((open_at.pop(), match.end()))
    kept, end = [], 0
    for start, stop in sorted(spans):
        if stop > end:  # an inner span ends before the outer one that was dropped already
            kept.append(text[end:start])
            end = stop
    kept.append(text[end:])
    return edge.sub("", "".join(kept))


def _without_links(text: str) -> str:
    """Returns the text with each [[target|label]] as its label; files, categories and other languages vanish."""
    while True:  # innermost first: the caption of a file may hold links
        text, count = _LINK.subn(_label, text)
        if not count:
            return text


def _label(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    if _NAMESPACE.match(target) and not target.startswith("::"):
        return ""
    return label.rpartition("|")[2] if label else target.lstrip(":")


def _without_closing_sections(text: str) -> str:
    kept, end, level = [], 0, 0  # level > 0: inside a section that is dropped
    for match in _HEADING.finditer(text):
        depth = len(match[1])
        if not level:
            kept.append(text[end : match.start()])
        end = match.start()
        if level and depth > level:
            continue
        level = depth if match[2].lower() in _CLOSING_SECTIONS else 0
    if not level:
        kept.append(text[end:])
    return "".join(kept)
