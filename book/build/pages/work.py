"""A student at work: what an answer costs, what its probability is worth, entities that come later."""

from __future__ import annotations

from typing import Any

from book.build.html import html_table
from book.build.pages.shown import Shown, none_yet, picture
from kgdistil.paper import at_work, plots

COMMANDS = {
    "answer": "make bench-answer",
    "calibration": "python -m kgdistil.paper.bench.calibration",
    "adding": "python -m kgdistil.paper.bench.adding",
    "serve": "python -m kgdistil.paper.bench.serve",
    "labels": "python -m kgdistil.paper.bench.labels labels.txt",
}


def of(name: str, report: Any, made: Any) -> str:
    """What is made of a measurement, or what would measure it."""
    return none_yet(COMMANDS[name]) if report is None else made(report)


def answer_cost(shown: Shown) -> str:
    """Times of an answer, and the picture beside the peers."""

    def made(report: dict[str, Any]) -> str:
        table = html_table(f"What an answer costs, {report['device']}", at_work.COSTS, at_work.costs(report))
        return table + picture(
            shown,
            "answer_cost",
            at_work.answer_cost(report),
            at_work.cost_in_words(report),
            "Ten best answers over the same codes in one run. FAISS rounds its tables to bytes and so gives most of "
            "the answers, not all; the others are exact, but for usearch, which rounds the rows.",
        )

    return of("answer", at_work.measured("answer"), made)


def answer_memory(shown: Shown) -> str:
    made = lambda report: html_table("Memory after a thousand answers", at_work.MEMORY, at_work.memory(report))
    return of("answer", at_work.measured("answer"), made)


def labels_found(shown: Shown) -> str:
    """Labels on disk beside kept libraries."""

    def made(report: dict[str, Any]) -> str:
        title = f"{report['labels']:,} labels, medians of {report['queries']:,} queries, {report['device']}"
        return html_table(title, at_work.LOOKED_UP, at_work.looked_up(report))

    return of("labels", at_work.measured("labels"), made)


def calibrated(shown: Shown) -> str:
    """Expected calibration errors on test triples, and reliability."""

    def made(report: dict[str, Any]) -> str:
        chosen = [x for x in report["students"] if x["student"].endswith("16B")]
        bins = report["config"]["bins"]
        errors = at_work.calibrated(report)
        alt = "Share of right answers over the probability given; " + "; ".join(
            f"{name}: error {before} before, {after} after" for name, _, before, after, *_ in errors
        )
        title = f"Ten best answers of each test query: expected calibration error over {bins} bins of equal number"
        drawn = picture(shown, "reliability", plots.calibration(chosen), alt)
        return html_table(title, at_work.CALIBRATED, errors) + drawn

    return of("calibration", at_work.measured("calibration"), made)


def answer_sets(shown: Shown) -> str:
    made = lambda report: html_table("Answer sets on test triples", at_work.SETS, at_work.answer_sets(report))
    return of("calibration", at_work.measured("calibration"), made)


def served(shown: Shown) -> str:
    """Requests a second under a load from another process."""

    def made(report: dict[str, Any]) -> str:
        title = f"{report['rows'][0]['connections']} connections from another process, {report['device']}"
        return html_table(title, at_work.SERVED, at_work.served(report))

    return of("serve", at_work.measured("serve"), made)


def added(shown: Shown) -> str:
    """Entities that training never saw, added from their triples, beside the same entities trained in."""

    def made(report: dict[str, Any]) -> str:
        entities = report["rows"][0]["entities"]
        title = f"{entities:,} entities that were held out of training, by their test triples"
        table = html_table(title, at_work.ADDED, at_work.added(report))
        return table + html_table("What it does to others, and takes", at_work.HURT, at_work.hurt(report))

    return of("adding", at_work.measured("adding"), made)
