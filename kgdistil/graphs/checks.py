"""What is likely wrong with a graph although it can be read: another order of columns, and answers that leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from kgdistil.errors import DataError
from kgdistil.graph import SPLITS
from kgdistil.graphs.labels import show

ALIKE = 0.8  # share of two relations' triples, as Toutanova and Chen 2015 and Akrami et al. 2020 count
FEW = 5  # triples of a relation below which that share says nothing
DEEP = 100  # relations between two entities that are compared with each other


def likely_order(triples: np.ndarray) -> str | None:
    """The order that columns [n, 3] of labels' numbers have more likely than head, relation, tail; None if that fits.

    Entities are heads and tails, so the two columns that share most values are theirs, and relations are fewer. Where
    no columns share any, as with users and items, the relations are those of which there are far fewer.
    """
    sets = [np.unique(triples[:, column]) for column in range(3)]
    sizes = [len(x) for x in sets]
    shared = {(a, b): len(np.intersect1d(sets[a], sets[b])) for a, b in ((0, 1), (1, 2), (0, 2))}
    for pair, relation, order in (((0, 1), 2, "htr"), ((1, 2), 0, "rht")):
        alone = not shared[0, 2] and 2 * shared[pair] > min(sizes[x] for x in pair)
        if alone or (shared[pair] > 2 * shared[0, 2] and sizes[relation] < sizes[1]):
            return order
    few = len(triples) >= 20 and sizes[1] * 5 > len(triples)  # a middle column of so many values is no relation's
    if not any(shared.values()) and few:
        for column, order in ((2, "htr"), (0, "rht")):
            if 10 * sizes[column] <= sizes[1] and 20 * sizes[column] <= len(triples):
                return order
    return None


def leaks(parts: Sequence[np.ndarray], relations: Sequence[str], entities: int) -> list[str]:
    """One line for each way in which the answer to a test triple stands in another part.

    Args:
        parts: train, valid, test, int64 [n, 3], of different triples each.
    """
    keys = [(part[:, 0] * len(relations) + part[:, 1]) * entities + part[:, 2] for part in parts]
    lines = []
    for a, b in ((0, 2), (0, 1), (1, 2)):
        if count := len(np.intersect1d(keys[a], keys[b])):
            same = count == len(keys[a]) == len(keys[b])
            where = "training" if a == 0 else SPLITS[a]
            lines.append(
                f"{SPLITS[b]} and {where} are the same {count:,} triples, so measures say nothing about new ones; "
                "give other parts, or one file to be split"
                if same
                else f"{count:,} of {len(keys[b]):,} {SPLITS[b]} triples stand in {where} too, which makes ranks "
                "better than they are; --drop-overlap (drop_overlap=True) leaves them out"
            )
    for inverse, what, mend in (
        (True, "inverses", "the answer to a test triple may stand in training the other way round"),
        (False, "near copies", "the answer to a test triple may stand in training under the other name"),
    ):
        if found := alike(np.concatenate(parts), len(relations), entities, inverse):
            (r, s), share = found[0]
            pairs = "1 pair of relations is" if len(found) == 1 else f"{len(found):,} pairs of relations are"
            example = f"{show(relations[r], 40)} and {show(relations[s], 40)} ({share:.0%})"
            lines.append(f"{pairs} {what} of each other, such as {example}: {mend}; keep one of each pair")
    return lines


def alike(triples: np.ndarray, relations: int, entities: int, inverse: bool) -> list[tuple[tuple[int, int], float]]:
    """Pairs of relations that hold between the same entities, or the same the other way round, and in what share.

    The share is that of the relation in which it is smaller; a relation that is its own inverse is no pair.
    """
    codes = (triples[:, 0] * relations + triples[:, 1]) * entities + triples[:, 2]
    triples = triples[np.unique(codes, return_index=True)[1]]  # a triple may stand in two parts
    size = np.bincount(triples[:, 1], minlength=relations)
    h, r, t = triples.T
    keys, kinds = h * entities + t, r
    if inverse:  # the reverse of each triple beside it, as a relation of its own
        keys, kinds = np.concatenate([keys, t * entities + h]), np.concatenate([r, r + relations])
    order = np.argsort(keys, kind="stable")
    keys, kinds = keys[order], kinds[order]
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(1, min(DEEP, len(keys))):
        same = keys[step:] == keys[:-step]
        if not same.any():
            break
        a, b = kinds[:-step][same], kinds[step:][same]
        if inverse:  # one of the two is a reverse, and then the other order of entities counts the pair again
            mixed = (a < relations) != (b < relations)
            a, b = a[mixed] % relations, b[mixed] % relations
        codes, found = np.unique(np.minimum(a, b) * relations + np.maximum(a, b), return_counts=True)
        counts.update({divmod(int(code), relations): int(n) for code, n in zip(codes, found)})
    halves = 2 if inverse else 1
    shares = {
        (r, s): n / halves / max(size[r], size[s])
        for (r, s), n in counts.items()
        if r != s and min(size[r], size[s]) >= FEW
    }
    return sorted(((pair, x) for pair, x in shares.items() if x >= ALIKE), key=lambda item: (-item[1], item[0]))


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
