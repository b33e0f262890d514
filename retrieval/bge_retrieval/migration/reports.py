"""What a migration has done, and what it would cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from ..store import PointId
from ..sync import IdSummary, SyncReport


@dataclass
class MigrationReport(SyncReport):
    """`written` counts writes, so a point that was written twice counts twice.

    `without_text` are points that were copied without vectors. `late` and `only_in_target` result
    from changes between the last pass and the cutover: points that differ in the target, and
    points that the source lacks (deleted in the source, or new in the target).
    """

    source: str = ""
    target: str = ""
    points: int = 0
    passes: int = 0
    deleted: int = 0
    without_text: IdSummary = field(default_factory=IdSummary)
    compared: int = 0
    alias: str | None = None
    late: list[PointId] = field(default_factory=list)
    only_in_target: list[PointId] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """The expected size, time and cost of a migration, extrapolated from a sample of points."""

    points: int
    sampled: int
    without_text: int
    tokens: int
    seconds: float
    dollars: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)
