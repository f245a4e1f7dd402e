"""What the templates under `book/` may call. Each function returns Markdown or HTML made from `results/`, so that no
number is typed; a module for each page of the book, and `shown` for what all of them read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from book.build.pages import (
    claims,
    figures,
    front,
    frontier,
    large,
    method,
    reference,
    reproduced,
    results,
    rules,
    scale,
    speed,
    tables,
    work,
)
from book.build.pages.shown import Shown

PIECES: dict[ModuleType, str] = {
    front: "lead quality_picture price front_table progress",
    method: "loss",
    results: "does_it_pay behind whole_lists lists_recipe table2 significance seeds turned published",
    tables: "cost epochs beside table",
    speed: "bench_device table5 peers_speed peers_differ gpu_speed lists_speed step_speed waits",
    figures: "figure figure1_paper figure2_paper figure2_said figures_known",
    claims: "claims near",
    reproduced: "not_reproduced sides suspects suspects_published unseen readings",
    frontier: "beaten sizes frontier frontier_large candidates nested coarse reciprocal trained ensemble paths aimed "
    "frontier_speed objectives",
    rules: "rule_searches rule_left_out strangers small_budgets",
    large: "large_graphs large_reading large_cost large_passes large_step large_quality large_answers",
    scale: "scale_table scale_constants scale_limits scale_published scale_measured scale_speed",
    work: "answer_cost answer_memory labels_found calibrated answer_sets added served",
    reference: "modules runs build executed contributing citation try_missing",
}


def pieces(shown: Shown) -> dict[str, Callable[..., Any]]:
    """The functions of PIECES by name, each with what is shown given already."""
    named = ((module, name) for module, names in PIECES.items() for name in names.split())
    return {name: functools.partial(getattr(module, name), shown) for module, name in named}
