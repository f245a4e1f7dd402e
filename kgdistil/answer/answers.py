"""What a student answers: columns of equal length, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kgdistil.answer.rendering import html_table, plain, text


class Answers(Sequence[dict[str, Any]]):
    """A table by columns: a sequence of rows, `answers["entity"]` a column, `to_pandas()` a DataFrame.

    `cut`: of how many queries a set with a `coverage` had more answers than k, so that it covers less.
    """

    cut: int = 0

    def __init__(self, columns: dict[str, list[Any]]):
        self.by_name = columns

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Answers:
        """The table of rows that have the same keys."""
        return cls({name: [row.get(name) for row in rows] for row in rows[:1] for name in row})

    @property
    def columns(self) -> list[str]:
        return list(self.by_name)

    @property
    def empty(self) -> bool:
        return not len(self)

    def __len__(self) -> int:
        return len(next(iter(self.by_name.values()), []))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, str):
            return self.by_name[at]
        if isinstance(at, slice):
            return Answers({name: column[at] for name, column in self.by_name.items()})
        return {name: column[at] for name, column in self.by_name.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = self.columns
        return (dict(zip(names, row)) for row in zip(*self.by_name.values()))

    def rows(self) -> list[dict[str, Any]]:
        """As JSON has it."""
        return list(self)

    def to_pandas(self) -> Any:
        """A pandas DataFrame; pandas is no part of the runtime."""
        import pandas as pd

        return pd.DataFrame(self.by_name)

    def __repr__(self) -> str:
        return plain(self.columns, zip(*self.by_name.values()))

    def _repr_html_(self) -> str:
        import html

        cells = [[html.escape(text(x)) for x in row] for row in zip(*self.by_name.values())]
        return html_table("Answers", [html.escape(name) for name in self.columns], cells)
