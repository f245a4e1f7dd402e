"""`python -m kgdistil.paper.kept`: what students of few dimensions keep of their teacher's MRR on the small graphs."""

from __future__ import annotations

import pandas as pd

from kgdistil.answer.files import write_text
from kgdistil.distillation.advice import MEASURED
from kgdistil.distillation.distil import distil
from kgdistil.graphs.datasets import load

GRAPHS, DIMS, TEACHER_DIM = ("nations", "umls", "kinships"), (4, 8, 16, 32), 64


def measure() -> None:
    """Train what is missing and write advice.csv; rows appear as they are done."""
    rows = pd.read_csv(MEASURED).to_dict("records") if MEASURED.is_file() else []
    for name in GRAPHS:
        for dim in DIMS:
            if any((row["graph"], row["dim"]) == (name, dim) for row in rows):
                continue
            done = distil(load(name), dim=dim, teacher_dim=TEACHER_DIM, progress=False)
            teacher, student = done.runs["teacher"].test(), done.runs[done.chosen].test()
            rows.append(
                {
                    "graph": name,
                    "teacher_dim": TEACHER_DIM,
                    "dim": dim,
                    "chosen": done.chosen,
                    "teacher_mrr": round(teacher, 4),
                    "student_mrr": round(student, 4),
                    "kept": round(student / teacher, 4),
                }
            )
            text = pd.DataFrame(rows).to_csv(index=False)
            write_text(MEASURED, text)


if __name__ == "__main__":
    measure()
