"""The method's pictures: what each loss does to a score."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from book.build.pages.shown import Shown, picture
from kgdistil.paper import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss(shown: Shown, name: str) -> str:
    figure, words = losses()[name]
    return picture(shown, f"loss-{name}", figure, words, words)


@functools.cache
def losses() -> dict[str, tuple[Figure, str]]:
    return plots.loss_pictures()
