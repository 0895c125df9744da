"""The page on the contract says what the kit does, promise by promise and cheat by cheat."""

from pathlib import Path

from cheats import KIT
from process_cheats import FATAL, PROCESS

from harness.check.kit import PROMISES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/contract.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_promise_stands_there_with_its_reason_in_the_order_of_the_kit():
    stated = [(row[0], row[2], row[3]) for row in ROWS if len(row) == 4 and row[0].startswith("`")]
    assert stated == [(f"`{p.name}`", p.why, "yes" if p.waivable else "no") for p in PROMISES]


def test_every_planted_cheat_stands_there_with_what_catches_it():
    stated = {row[0]: row[1] for row in ROWS if len(row) == 3}
    for cheat in (*KIT, *PROCESS):
        assert stated[cheat.name] == f"`{cheat.caught_by}`"
    for cheat in FATAL:
        assert stated[cheat.name] == "the runner"
