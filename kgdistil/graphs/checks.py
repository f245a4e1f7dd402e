"""What is likely wrong with a graph although it can be read: another order of columns, and answers that leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kgdistil.errors import DataError
from kgdistil.graph import SPLITS
from kgdistil.graphs.labels import show

ALIKE = 0.8  # share of two relations' triples, as Toutanova and Chen 2015 and Akrami et al. 2020 count
WITHIN = 0.95  # share of a relation's triples that stand under a larger one as well
FEW = 5  # triples of a relation below which that share says nothing
DEEP = 100  # relations between two entities that are compared with each other
MANY = 30  # different values of a middle column that are hardly relations


def likely_order(triples: np.ndarray) -> str | None:
    """The order that columns [n, 3] of labels' numbers have more likely than head, relation, tail; None if that fits.

    Entities are heads and tails, so the two columns that share most values are theirs, and relations are fewer. Where
    no columns share any, as with users and items, the relations are those of which there are far fewer.
    """
    sizes, shared = _sizes(triples)
    for pair, relation, order in (((0, 1), 2, "htr"), ((1, 2), 0, "rht")):
        few, most = sorted(sizes[x] for x in pair)
        alone = not shared[0, 2] and 2 * shared[pair] > few
        alone = alone and (2 * shared[pair] > most or sizes[relation] <= most)  # else numbers, alike by chance
        if alone or (shared[pair] > 2 * shared[0, 2] and sizes[relation] < sizes[1]):
            return order
    # A middle column of so many values is no relation's, or holds them between next to no heads or tails.
    many = len(triples) >= 20 and (sizes[1] * 5 > len(triples) or sizes[1] >= MANY)
    if not shared[0, 2] and many:
        for column, pair, order in ((2, (0, 1), "htr"), (0, (1, 2), "rht")):
            if not shared[pair] and 10 * sizes[column] <= sizes[1] and 20 * sizes[column] <= len(triples):
                return order
    return None


def doubtful_order(triples: np.ndarray) -> str | None:
    """One line on columns [n, 3] of which those of entities share no value in another order either; else None."""
    sizes, shared = _sizes(triples)
    column, order = (2, "htr") if sizes[2] <= sizes[0] else (0, "rht")
    if shared[0, 2] or shared[(0, 1) if column == 2 else (1, 2)] or sizes[1] < 2 * sizes[column] or len(triples) < 10:
        return None
    a, b, c = sizes
    which = f"the {('first', 'last')[column == 2]} column has fewer values ({sizes[column]:,}) than the middle ({b:,})"
    return (
        f"no entity is both head and tail, and {which}: read as head, relation, tail that is {b:,} relation(s) between "
        f"{a:,} heads and {c:,} tails; if {sizes[column]:,} are the relations, give --order {order} "
        f'(order="{order}"), else --order hrt'
    )


def _sizes(triples: np.ndarray) -> tuple[list[int], dict[tuple[int, int], int]]:
    """How many values the columns have, and how many each two share."""
    there = np.zeros((3, int(triples.max()) + 1), bool)
    for column in range(3):
        there[column, triples[:, column]] = True
    shared = {(a, b): int((there[a] & there[b]).sum()) for a, b in ((0, 1), (1, 2), (0, 2))}
    return there.sum(1).tolist(), shared


def leaks(parts: Sequence[np.ndarray], relations: Sequence[str], entities: int) -> list[str]:
    """One line for each way in which the answer to a test triple stands in another part, with how many do.

    Args:
        parts: train, valid, test, int64 [n, 3], of different triples each.
    """

    def key(h: np.ndarray, r: np.ndarray | int, t: np.ndarray) -> np.ndarray:
        return (h * len(relations) + r) * entities + t

    def among(few: np.ndarray, sorted_: np.ndarray) -> np.ndarray:
        """Which of some numbers stand among sorted ones."""
        return sorted_[np.searchsorted(sorted_, few).clip(max=len(sorted_) - 1)] == few

    keys = [key(*part.T) for part in parts]
    for part in keys:
        part.sort()
    lines = []
    for a, b in ((0, 2), (0, 1), (1, 2)):
        if count := int(among(keys[b], keys[a]).sum()):
            same = count == len(keys[a]) == len(keys[b])
            where = "training" if a == 0 else SPLITS[a]
            lines.append(
                f"{SPLITS[b]} and {where} are the same {count:,} triples, so measures say nothing about new ones; "
                "give other parts, or one file to be split"
                if same
                else f"{count:,} of {len(keys[b]):,} {SPLITS[b]} triples stand in {where} too, which makes ranks "
                "better than they are; --drop-overlap (drop_overlap=True) leaves them out"
            )
    test, trained = parts[2], keys[0]
    h, r, t = test.T

    def answered(pairs: Iterable[tuple[int, int]], inverse: bool) -> str:
        """How many test triples of a relation stand in training under the other of its pair."""
        found = np.zeros(len(test), bool)
        for relation, other in pairs:
            some = np.flatnonzero(r == relation)
            wanted = key(t[some], other, h[some]) if inverse else key(h[some], other, t[some])
            found[some] |= among(wanted, trained)
        where = "the other way round" if inverse else "under the other name"
        return f"{found.sum():,} of {len(test):,} test triples stand in training {where}" if found.any() else ""

    turned = (h != t) & among(key(t, r, h), trained)
    if turned.sum() >= max(3, 0.01 * len(test)):  # fewer may be by chance
        lines.append(
            f"{turned.sum():,} of {len(test):,} test triples stand in training the other way round, under the same "
            "relation, so that to learn which relations hold both ways is to know their answers"
        )
    for inverse, (equal, within) in zip((True, False), alike(parts, len(relations), entities)):
        what = "inverses" if inverse else "near copies"
        if equal:
            pairs = "1 pair of relations is" if len(equal) == 1 else f"{len(equal):,} pairs of relations are"
            both = [both for (a, b), _ in equal for both in ((a, b), (b, a))]
            told = answered(both, inverse) or "no test triple stands in training that way"
            example = _example(*equal[0], relations)
            lines.append(f"{pairs} {what} of each other, such as {example}: {told}; keep one of each pair")
        if within and (told := answered((pair for pair, _ in within), inverse)):
            few = "1 relation holds" if len(within) == 1 else f"{len(within):,} relations hold"
            turn = ", turned round" if inverse else ""
            example = _example(*within[0], relations)
            lines.append(f"{few} only where a larger one does{turn}, such as {example}: {told}")
    return lines


def _example(pair: tuple[int, int], share: float, relations: Sequence[str]) -> str:
    return f"{show(relations[pair[0]], 40)} and {show(relations[pair[1]], 40)} ({share:.0%})"


Shares = list[tuple[tuple[int, int], float]]


def alike(parts: Sequence[np.ndarray], relations: int, entities: int) -> list[tuple[Shares, Shares]]:
    """Pairs of relations that hold between the same entities the other way round, and of those that hold the same way.

    Args:
        parts: int64 [n, 3]; a triple may stand in several.
    Returns:
        Twice: pairs of which both have most triples in common, with the share of the one in which it is smaller; and of
        the others those of which the first lies within the second, with its share. A relation that is its own inverse
        is no pair.
    """
    codes = []  # two entities in ascending order, the relation, and whether the larger is the head
    for h, r, t in (part.T for part in parts):
        code = (np.minimum(h, t) * entities + np.maximum(h, t)).astype(np.uint64)
        code *= np.uint64(2 * relations)  # entities² × relations stay below 2^63
        code += (2 * r + (h > t)).astype(np.uint64)
        codes.append(code)
    code = np.concatenate(codes)
    codes.clear()
    code.sort()
    code = code[np.append(True, code[1:] != code[:-1])]
    keys, kinds = code // np.uint64(2 * relations), (code % np.uint64(2 * relations)).astype(np.int32)
    del code
    size = np.bincount(kinds >> 1, minlength=relations)
    counts: tuple[Counter[tuple[int, int]], ...] = Counter(), Counter()
    at = np.flatnonzero(keys[1:] == keys[:-1])
    for step in range(1, DEEP):  # those between the same entities as the one so many places on
        at = at[at + step < len(keys)]
        at = at[keys[at] == keys[at + step]]
        if not len(at):
            break
        a, b = kinds[at].astype(np.int64), kinds[at + step].astype(np.int64)
        loop = keys[at] // np.uint64(entities) == keys[at] % np.uint64(entities)  # both ways at once
        for found, wanted in zip(counts, (((a ^ b) & 1 == 1) | loop, (a ^ b) & 1 == 0)):
            r, s = a[wanted] >> 1, b[wanted] >> 1
            both, number = np.unique(np.minimum(r, s) * relations + np.maximum(r, s), return_counts=True)
            found.update({divmod(int(x), relations): int(n) for x, n in zip(both, number)})
    return [_shares(found, size) for found in counts]


def _shares(counts: Mapping[tuple[int, int], int], size: np.ndarray) -> tuple[Shares, Shares]:
    equal, within = dict[tuple[int, int], float](), dict[tuple[int, int], float]()
    for (r, s), n in counts.items():
        if r != s and min(size[r], size[s]) >= FEW:
            small, large = (r, s) if size[r] <= size[s] else (s, r)
            if n >= ALIKE * size[large]:
                equal[r, s] = n / size[large]
            elif n >= WITHIN * size[small]:
                within[small, large] = n / size[small]
    ranked = [sorted(found.items(), key=lambda item: (-item[1], item[0])) for found in (equal, within)]
    return ranked[0], ranked[1]


def without_overlap(parts: Sequence[np.ndarray], relations: int, entities: int) -> tuple[list[np.ndarray], int]:
    """Parts of which no triple stands in an earlier one, and how many were left out.

    Raises:
        DataError: nothing is left of a part.
    """
    keys = [(part[:, 0] * relations + part[:, 1]) * entities + part[:, 2] for part in parts]
    kept = [np.ones(len(parts[0]), bool), ~np.isin(keys[1], keys[0])]
    kept.append(~np.isin(keys[2], np.concatenate([keys[0], keys[1]])))
    for what, mask in zip(SPLITS, kept):
        if not mask.any():
            raise DataError(f"all triples of {what} stand in an earlier part, so nothing is left; give other parts")
    return [part[mask] for part, mask in zip(parts, kept)], sum(int((~mask).sum()) for mask in kept)
