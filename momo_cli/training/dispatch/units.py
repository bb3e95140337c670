"""Units of work: the runs that a trainer takes up at a time, cut when it is free to begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from momo_cli.plan.grid import RunSpec

Claim = Callable[[Sequence[RunSpec], int], list[RunSpec]]
"""``claim(candidates, most)``: at most ``most`` of the candidates, which nobody else trains from now on.

It is called in the command's own process, just before the runs begin. Candidates that it leaves are offered again;
where it returns none, the others count as somebody else's.
"""


def claim_first(candidates: Sequence[RunSpec], most: int) -> list[RunSpec]:
    """The first ``most``: nobody else is there."""
    return list(candidates[:most])


class Units:
    """Runs that nobody has begun.

    Args:
        specs: The runs.
        size: The most runs in a unit.
        claim: See :data:`Claim`.
        begun: Units to begin with, whatever their size: runs that go on together.
    """

    def __init__(
        self, specs: Sequence[RunSpec], size: int, claim: Claim, begun: Sequence[Sequence[RunSpec]] = ()
    ) -> None:
        self._open, self._size, self._claim, self._begun = list(specs), size, claim, list(begun)

    def next(self) -> list[RunSpec]:
        """The runs of the next unit; none where none is left."""
        claimed: list[RunSpec] = []
        while self._begun and not claimed:
            unit = self._begun.pop(0)
            claimed = self._claim(unit, len(unit))
        if self._open and not claimed:
            claimed = self._claim(self._open, self._size)
        taken = set(claimed)
        self._open = [spec for spec in self._open if spec not in taken] if claimed else []
        return claimed
