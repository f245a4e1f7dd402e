"""What methods are called and how they are drawn, in the order in which they are shown; what graphs are called."""

from __future__ import annotations

from typing import NamedTuple

TITLES = {"wn18rr": "WN18RR", "fb15k-237": "FB15k-237", "umls": "UMLS"}

# Okabe and Ito's colours, told apart by every kind of colour vision
COLOURS = {"teacher": "#555555", "no-DS": "#E69F00", "stage 1": "#56B4E9", "stage 2": "#0072B2"}
COLOURS |= {"DS": COLOURS["stage 2"], "-S2": COLOURS["stage 1"], "-S1": "#CC79A7"}  # the same by the paper's names


class Style(NamedTuple):
    """How a method is drawn, and its name for people."""

    colour: str
    line: str
    marker: str
    label: str


# The methods of `frontier`
OF_BYTES = {
    "distilled": Style("#0072B2", "-", "o", "few bits, distilled"),
    "own-lists": Style("#0072B2", ":", ".", "few bits, lists of the teacher it starts from"),
    "committee": Style("#0072B2", ":", "*", "few bits, distilled again from three such"),
    "paths": Style("#000000", "-", "*", "few bits, taught by paths"),
    "reciprocal": Style("#117733", "-", "X", "few bits, reciprocal relations, distilled"),
    "reciprocal-alone": Style("#999933", "-.", "x", "few bits, reciprocal relations, no teacher"),
    "reciprocal-low-rank": Style("#882255", "-", "d", "few bits of low rank, reciprocal relations, distilled"),
    "reciprocal-low-rank-alone": Style("#AA4499", "-.", "x", "few bits of low rank, reciprocal relations, no teacher"),
    "low-rank": Style("#7B3FBF", "-", "o", "few bits of low rank, distilled"),
    "low-rank-alone": Style("#B8860B", "-.", "s", "few bits of low rank, no teacher"),
    "coded-alone": Style("#E69F00", "-", "s", "few bits, no teacher"),
    "rounded": Style("#56B4E9", "--", "v", "teacher, rounded"),
    "FAISS": Style("#CC79A7", "--", "^", "teacher, product quantised (FAISS)"),
    "OPQ": Style("#CC79A7", ":", ">", "teacher, rotated and product quantised (FAISS OPQ)"),
    "RQ": Style("#8C4A75", "--", "^", "teacher, residual codes (FAISS RQ)"),
    "LSQ": Style("#8C4A75", ":", "<", "teacher, additive codes (FAISS LSQ)"),
    "small-distilled": Style("#009E73", "-", "D", "few floats, distilled"),
    "small": Style("#D55E00", "-", "P", "few floats, no teacher"),
    "PCA": Style("#999999", "--", "<", "teacher on few axes (PCA)"),
    "random projection": Style("#BBBBBB", ":", ">", "teacher on random axes"),
}
TEACHERS = Style(COLOURS["teacher"], "--", "h", "teachers, float32")
