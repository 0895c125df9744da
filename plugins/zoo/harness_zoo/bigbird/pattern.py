"""Which blocks of keys a block of queries sees (arXiv:2007.14062, section 2), none of them later than itself."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockPattern:
    """How many blocks of each kind, and the seed of the random ones."""

    block: int
    window: int
    random: int
    first: int
    seed: int

    def rows(self, length: int) -> list[list[int]]:
        """Returns the key blocks of each query block of a sequence of that length, ascending.

        They are drawn block after block, so a longer sequence begins with the rows of a shorter one.
        """
        draw = random.Random(self.seed)
        rows = []
        for i in range(-(-length // self.block)):
            fixed = {*range(max(0, i - self.window + 1), i + 1), *range(min(self.first, i + 1))}
            others = [j for j in range(i) if j not in fixed]
            rows.append(sorted(fixed | set(draw.sample(others, min(self.random, len(others))))))
        return rows

    def seen(self, rows: list[list[int]], t: int) -> list[int]:
        """Returns the positions that position t sees."""
        return [s for j in rows[t // self.block] for s in range(j * self.block, (j + 1) * self.block) if s <= t]
