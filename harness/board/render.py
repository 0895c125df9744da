"""Tables as text: GitHub's Markdown, a terminal, one HTML page, JSON."""

import html
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness.board.cells import DASH, Cell, Column, Notes, stacked
from harness.board.table import Row, Table
from harness.config import to_json
from harness.errors import InputError, nearest
from harness.spec import Measure

FORMATS = ("github", "plain", "html", "json")
LEFT = ("mixer",)
WIDTH = 160  # of the lines around a table in a terminal
STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b2129;
        --line: #d5dae1; --soft: #5d6773; --stripe: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181e; --text: #e4e8ed; --line: #363d47; --soft: #9aa5b1; --stripe: #1d222a; }
}
body { margin: 2rem auto; padding: 0 1.5rem; max-width: 110rem; background: var(--back); color: var(--text);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem; }
ul { color: var(--soft); font-size: .85rem; margin: .4rem 0 .8rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { vertical-align: bottom; text-align: left; white-space: normal; font-weight: 600; border-bottom-width: 2px; }
tbody tr:nth-child(even) { background: var(--stripe); }
.retired { opacity: .65; }
"""


def render(tables: Sequence[Table], format: str) -> str:
    """Returns the tables as `github`, `plain`, `html` or `json` text, without a final line break."""
    if format == "json":
        return json.dumps([_plain_values(table) for table in tables], indent=2, ensure_ascii=False, allow_nan=False)
    if format == "html":
        return _page(tables)
    if format == "github":
        return "\n\n".join(_github(table) for table in tables)
    if format == "plain":
        return "\n\n\n".join(_plain(table) for table in tables)
    raise InputError(f"unknown format {format!r}: {nearest(format, FORMATS)}")


def title(table: Table) -> str:
    """Returns the heading of a table."""
    retired = " · retired: this preset or a task of it has another version by now" if table.retired else ""
    return f"{table.suite} · {table.device}{retired}"


def _body(table: Table) -> tuple[list[str], list[list[str]], list[str]]:
    """Returns titles, rows of text and the lines below the table."""
    notes = Notes()
    rows = [
        [
            DASH if row.rank is None else str(row.rank),
            notes.mark(row.mixer, row.note),
            *(notes.mark(cell.text, cell.note) for cell in row.cells),
        ]
        for row in table.rows
    ]
    return ["#", "mixer", *(column.title for column in table.columns)], rows, [*notes.lines(), *table.notes]


def _tabulated(titles: Sequence[str], rows: list[list[str]], format: str) -> str:
    sides = ["left" if name.strip() in LEFT else "right" for name in titles]
    found: str = tabulate(rows, headers=titles, tablefmt=format, disable_numparse=True, colalign=sides)
    return found


def _plain(table: Table) -> str:
    titles, rows, below = _body(table)
    grid = _tabulated(stacked(titles), rows, "simple")
    return "\n".join([title(table), *_wrapped(table.caption), "", grid, "", *_wrapped(below)])


def _wrapped(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""]]


def _github(table: Table) -> str:
    titles, rows, below = _body(table)
    escaped = [[_markdown(text) for text in row] for row in rows]
    around = ["\n".join(f"- {_markdown(line)}" for line in lines) for lines in (table.caption, below)]
    parts = [f"### {_markdown(title(table))}", around[0], _tabulated(titles, escaped, "github"), around[1]]
    return "\n\n".join(part for part in parts if part)


def _markdown(text: str) -> str:
    for sign in "\\|*`[":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("_", "\\_")


def _page(tables: Sequence[Table]) -> str:
    parts = [f'<section class="{"retired" if t.retired else "current"}">\n{_section(t)}\n</section>' for t in tables]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Mixer Harness leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            "<h1>Mixer Harness leaderboard</h1>",
            *parts,
            "</body>\n</html>",
        ]
    )


def _section(table: Table) -> str:
    titles, rows, below = _body(table)
    around = [
        f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" for lines in (table.caption, below)
    ]
    grid = _tabulated(titles, rows, "html")
    return f'<h2>{html.escape(title(table))}</h2>\n{around[0]}\n<div class="scroll">\n{grid}\n</div>\n{around[1]}'


def _plain_values(table: Table) -> dict[str, Any]:
    return {
        "suite": table.suite,
        "suite_key": table.suite_key,
        "device_class": table.device_class,
        "device": table.device,
        "retired": table.retired,
        "caption": list(table.caption),
        "rows": [_row_values(row, table.columns) for row in table.rows],
    }


def _row_values(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "mixer": row.mixer,
        "note": row.note,
        "records": list(row.records),
        "cells": {column.key: _cell_values(cell) for column, cell in zip(columns, row.cells, strict=True)},
    }


def _cell_values(cell: Cell) -> dict[str, Any]:
    said = {"text": cell.text, "note": cell.note}
    return said | (_finite(cell.measure) if cell.measure else {"value": cell.value})


def _finite(measure: Measure) -> dict[str, Any]:
    """Returns the measure for JSON, which knows neither inf nor nan: null, and the text says which."""
    found = to_json(measure)
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in found.items()}
