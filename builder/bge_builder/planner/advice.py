"""One sentence: deploy which endpoint, or call a hosted API."""

from __future__ import annotations

from collections.abc import Sequence

from .report import HostedCost, Report
from .scenario import Target
from .sweep import p99

COLD_SHARE = 0.01  # from which cold starts are the p99


def advise(reports: Sequence[Report], target: Target) -> str:
    """Return the advice on the cheapest report that meets the target, or on the cheapest of all."""
    by_cost = sorted(reports, key=lambda report: report.dollars.total)
    best = next((report for report in by_cost if not missed(report, target)), by_cost[0])
    if not best.requests:
        if not best.dollars.total:
            return "There is no traffic, and an endpoint that scales to zero costs nothing."
        return f"There is no traffic: set min workers to 0 and save {money(best.dollars.total)}."
    hosted = best.cheapest_same_model
    if hosted is not None and hosted.dollars < best.dollars.total:
        return hosted_advice(best, hosted, missed(best, target))
    return own_advice(best, hosted, missed(best, target))


def hosted_advice(best: Report, hosted: HostedCost, misses: Sequence[str]) -> str:
    miss = f", which miss {' and '.join(misses)}" if misses else ""
    return (
        f"Call a hosted API: this traffic costs {money(hosted.dollars)} {best.period} there and "
        f"{money(best.dollars.total)} on {endpoint_text(best)}{miss}, unless the texts must stay "
        "with you or you need what only your own worker gives."
    )


def own_advice(best: Report, hosted: HostedCost | None, misses: Sequence[str]) -> str:
    verb = f"Nothing tried meets {' and '.join(misses)}; the cheapest are" if misses else "Deploy"
    sentence = f"{verb} {endpoint_text(best)}: {money(best.dollars.total)} {best.period}"
    if hosted is not None:
        sentence += f", where the same models hosted cost {money(hosted.dollars)}"
    if best.is_once:
        return f"{sentence}; it ends after {milliseconds(3.6e6 * best.last_reply_hours)}."
    sentence += f"; p99 is {milliseconds(p99(best))}"
    if cold_starts_decide(best):
        sentence += f" because {best.cold_share:.0%} of the requests meet a cold start"
    return f"{sentence}."


def cold_starts_decide(report: Report) -> bool:
    """Whether p99 would be less than half of it without cold starts."""
    warm = report.warm.p99
    return report.cold_share >= COLD_SHARE and warm is not None and warm < p99(report) / 2


def missed(report: Report, target: Target) -> list[str]:
    """Return the targets that the endpoint misses."""
    misses = []
    if target.p99_ms is not None and p99(report) > target.p99_ms:
        misses.append(f"a p99 of {milliseconds(target.p99_ms)}")
    if target.dollars is not None and report.dollars.total > target.dollars:
        misses.append(f"{money(target.dollars)} {report.period}")
    return misses


def endpoint_text(report: Report) -> str:
    endpoint = report.endpoint
    return (
        f"{report.card} workers ({endpoint.min_workers} to {endpoint.max_workers}, "
        f"{endpoint.idle_timeout:g} s idle)"
    )


def money(dollars: float) -> str:
    if 0 < dollars < 0.01:
        return "<$0.01"
    return f"${dollars:,.2f}" if dollars < 100 else f"${dollars:,.0f}"


def milliseconds(value: float | None) -> str:
    """Return a time in the unit that a reader would use."""
    if value is None:
        return "–"
    if value < 1000:
        return f"{value:.0f} ms"
    if value < 120_000:
        return f"{value / 1e3:.1f} s"
    return f"{value / 60e3:.0f} min" if value < 7.2e6 else f"{value / 3.6e6:.1f} h"
