"""Similarity measures of two rankings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

Id = str | int
Ranking = Sequence[Id]  # best first
PERSISTENCE = 0.9  # of RBO: the first ten ranks have 86 % of the weight


class Agreement(NamedTuple):
    """The similarity of two rankings down to one depth. Repeated ids count once.

    `overlap` is the number of common ids divided by the length of the longer ranking; None if both
    rankings hold every candidate. `rbo` and `tau` are those of `rank_biased_overlap` and
    `kendall_tau`. `same_first` is true if both have the same first id. Two empty rankings agree.
    """

    overlap: float | None
    rbo: float
    tau: float | None
    same_first: bool


def agreement(
    first: Iterable[Id], second: Iterable[Id], depth: int, pool: int | None = None
) -> Agreement:
    """Compare two rankings down to `depth`. `pool` is the number of candidates, if known."""
    a, b = (list(dict.fromkeys(ranking))[:depth] for ranking in (first, second))
    longer = max(len(a), len(b))
    common = len(set(a) & set(b))
    overlap = common / longer if longer else 1.0
    return Agreement(
        overlap=None if pool is not None and pool <= longer else overlap,
        rbo=rank_biased_overlap(a, b),
        tau=kendall_tau(a, b),
        same_first=a[:1] == b[:1],
    )


def rank_biased_overlap(first: Ranking, second: Ranking, p: float = PERSISTENCE) -> float:
    """Return RBO_ext, in 0..1, of two rankings of any length without repetitions.

    Equation 32 of Webber, Moffat, Zobel: A similarity measure for indefinite rankings, ACM TOIS
    28(4), 2010. It extrapolates the agreement seen so far below the end of the rankings.
    """
    short, long = sorted((first, second), key=len)
    if not short:
        return 0.0 if long else 1.0
    s, shared, common = len(short), 0, 0
    seen: tuple[set[Id], set[Id]] = set(), set()
    total = 0.0
    for depth, item in enumerate(long, 1):
        seen[0].add(item)
        if depth <= s:
            seen[1].add(short[depth - 1])
            common += short[depth - 1] in seen[0] and short[depth - 1] != item
        common += item in seen[1]
        if depth == s:
            shared = common  # X_s: assumed to hold below the end of the shorter ranking
        below = max(0, depth - s)
        total += (common + shared * below / s) / depth * p**depth
    tail = ((common - shared) / len(long) + shared / s) * p ** len(long)
    return min(1.0, (1 - p) / p * total + tail)  # rounding may exceed 1


def kendall_tau(first: Ranking, second: Ranking) -> float | None:
    """Return Kendall's tau of the common items, in -1..1, or None if fewer than two are common.

    Without ties, tau-b equals tau-a.
    """
    positions = {item: position for position, item in enumerate(second)}
    ranks = [positions[item] for item in first if item in positions]
    signs = [1 if above < below else -1 for above, below in combinations(ranks, 2)]
    return sum(signs) / len(signs) if signs else None
