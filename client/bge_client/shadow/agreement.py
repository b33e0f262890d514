"""How alike two orders of the same things are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Id = str | int
Ranking = Sequence[Id]  # best first
PERSISTENCE = 0.9  # of the rank-biased overlap: the first ten ranks have 86 % of the weight


class Agreement(NamedTuple):
    """How alike two orders are, down to one depth; an id that comes twice counts once.

    `overlap` is the share of ids in common, of as many as the longer order has, None where all
    there are must be in both; `rbo` see `rank_biased_overlap`; `tau` see `kendall_tau`;
    `same_first` whether both begin alike. Two empty orders agree.
    """

    overlap: float | None
    rbo: float
    tau: float | None
    same_first: bool


def agreement(
    one: Iterable[Id], two: Iterable[Id], depth: int, pool: int | None = None
) -> Agreement:
    """`pool` is how many ids there are to be ordered, where that is known."""
    first, second = (list(dict.fromkeys(order))[:depth] for order in (one, two))
    longer = max(len(first), len(second))
    common = len(set(first) & set(second))
    overlap = common / longer if longer else 1.0
    return Agreement(
        overlap=None if pool is not None and pool <= longer else overlap,
        rbo=rank_biased_overlap(first, second),
        tau=kendall_tau(first, second),
        same_first=first[:1] == second[:1],
    )


def rank_biased_overlap(one: Ranking, two: Ranking, p: float = PERSISTENCE) -> float:
    """RBO_ext in 0..1 of two orders without repetitions, of any two lengths.

    Equation 32 of Webber, Moffat, Zobel: A similarity measure for indefinite rankings, ACM TOIS
    28(4), 2010. The agreement seen down to the end is taken to go on below it.
    """
    short, long = sorted((one, two), key=len)
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
            shared = common  # X_s: what lies below the shorter order's end would hold as much
        below = max(0, depth - s)
        total += (common + shared * below / s) / depth * p**depth
    tail = ((common - shared) / len(long) + shared / s) * p ** len(long)
    return min(1.0, (1 - p) / p * total + tail)  # rounding errors may pass 1


def kendall_tau(one: Ranking, two: Ranking) -> float | None:
    """Kendall's tau of the common items, -1..1; None if fewer than two are common.

    It is tau-b, which equals tau-a here: no two items of an order have the same rank.
    """
    places = {item: place for place, item in enumerate(two)}
    ranks = np.array([places[item] for item in one if item in places])
    if len(ranks) < 2:
        return None
    signs = np.sign(ranks[None, :] - ranks[:, None])  # [i, j]: 1 if both orders have i above j
    pairs = len(ranks) * (len(ranks) - 1) / 2
    return float(np.triu(signs).sum() / pairs)
