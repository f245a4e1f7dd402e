"""What students of few dimensions keep: measured once for each graph and dimension, and read by the advice."""

from types import SimpleNamespace

import pandas as pd

from kgdistil.distillation import advice
from kgdistil.paper import kept


def test_what_is_measured_is_what_distil_found_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    asked, mrr = [], {"teacher": 0.8, "no-DS": 0.5, "stage 2": 0.6}

    def distil(graph, *, dim, teacher_dim, progress):
        asked.append((graph.name, dim, teacher_dim))
        runs = {name: SimpleNamespace(test=lambda name=name: mrr[name]) for name in mrr}
        return SimpleNamespace(runs=runs, chosen="no-DS" if dim == 2 else "stage 2")

    monkeypatch.setattr(kept, "MEASURED", tmp_path / "advice.csv")
    monkeypatch.setattr(kept, "distil", distil)
    monkeypatch.setattr(kept, "GRAPHS", ("nations",))
    monkeypatch.setattr(kept, "DIMS", (2,))
    kept.measure()
    monkeypatch.setattr(kept, "DIMS", (2, 4))
    kept.measure()
    assert asked == [("nations", 2, 64), ("nations", 4, 64)]
    table = pd.read_csv(tmp_path / "advice.csv")
    assert list(table.columns) == list(pd.read_csv(advice.MEASURED).columns)
    assert list(table["chosen"]) == ["no-DS", "stage 2"] and list(table["kept"]) == [0.625, 0.75]
    assert list(table["student_mrr"]) == [0.5, 0.6] and set(table["teacher_mrr"]) == {0.8}
