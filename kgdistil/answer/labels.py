"""Labels that are searched where they lie: two or three arrays, usually mapped from files, of which little is read.

Why two arrays rather than a library's structure: `results/bench/labels.json`, made by `kgdistil.paper.bench.labels`.
"""

from __future__ import annotations

import difflib
import itertools
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from kgdistil.errors import CheckpointError

COMPARED = 256  # neighbours in the order that are compared with a text that is not there
LONGEST = 200  # characters of a text for which another is suggested
TRIED = 1000  # letters that are tried in place of those of a text
LARGE = 1 << 16  # labels; a Python string for each of more would take longer to make than they are used for
SAMPLED = 16  # labels, spread evenly, whose order is looked at when they are opened
Touch = Callable[[int, int, int], None]
END = b"\xff"  # after every letter: no UTF-8 has it


def encode(text: str) -> bytes:
    """UTF-8 of a text in which lone surrogates may stand. Its order is that of the code points."""
    return text.encode("utf-8", "surrogatepass")


class Labels(Sequence[str]):
    """The labels of n entities or relations, or their readable names; their number is their place.

    Opening looks at a few of them, since to read millions would take seconds. What is found is what was asked for all
    the same: in labels that are not sorted, which no writer of this package leaves, a label may be met with an error,
    or not be found.

    Args:
        text: uint8 [bytes], the labels as UTF-8 (`surrogatepass`), one after the other.
        offsets: int64 [n + 1], where each begins, and the end.
        order: int32 [n], the numbers by ascending label, equal ones by ascending number. Without it the labels
            themselves ascend, and no two are equal.
        touch: called with a label's number and its place in the text, start and end, before it is read.
    Raises:
        CheckpointError: the arrays are not these, here or where a damaged place is met; `check` looks at all of them.
    """

    def __init__(
        self, text: np.ndarray, offsets: np.ndarray, order: np.ndarray | None = None, touch: Touch | None = None
    ) -> None:
        for given, kind in ((text, np.uint8), (offsets, np.int64), (order, np.int32)):
            if given is not None and (given.ndim != 1 or given.dtype != kind):
                raise damaged(f"{given.dtype} of shape {given.shape} in place of a row of {np.dtype(kind)}")
        n = len(offsets) - 1
        if n < 0 or offsets[0] != 0 or offsets[-1] != len(text) or (order is not None and len(order) != n):
            raise damaged("the lengths of their files do not fit each other")
        self._touch = touch
        self._arrays = {"text": text, "offsets": offsets} | ({} if order is None else {"order": order})
        # a view gives a number or a few bytes in a fraction of the time that an array takes
        self._text, self._offsets = (np.ascontiguousarray(x).data for x in (text, offsets))
        self._order = None if order is None else np.ascontiguousarray(order).data
        self._count = n
        sample = [self._bytes(at) for at in range(0, n, max(1, n // SAMPLED))]
        if any(map(operator.gt, sample, sample[1:])):
            raise damaged("they are not sorted")

    @classmethod
    def of(cls, labels: Sequence[str]) -> Labels:
        """The labels of a list, packed; with an order where they do not ascend or are not distinct."""
        if isinstance(labels, Labels):
            return labels
        text, offsets = bytearray(), array("q", [0])
        for label in labels:
            text += encode(label)
            offsets.append(len(text))
        order = None
        if not all(map(operator.lt, labels, itertools.islice(labels, 1, None))):
            order = np.array(sorted(range(len(labels)), key=labels.__getitem__), np.int32)
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(offsets, np.int64), order)

    def added(self, labels: Sequence[str]) -> Labels:
        """These and then further ones, which take the numbers from n on."""
        keys = [encode(label) for label in labels]
        ends = self._arrays["offsets"][-1] + np.cumsum([len(key) for key in keys], dtype=np.int64)
        text = np.concatenate([self._arrays["text"], np.frombuffer(b"".join(keys), np.uint8)])
        rank = sorted(range(len(keys)), key=keys.__getitem__)
        at = [self._lower(keys[i] + b"\0", 0, self._count) for i in rank]  # past those that are equal
        order = self._arrays.get("order", np.arange(self._count, dtype=np.int32))
        order = np.insert(order, at, np.array(rank, np.int32) + self._count)
        return Labels(text, np.concatenate([self._arrays["offsets"], ends]), order)

    def kept(self) -> tuple[str, ...] | Labels:
        """As a graph has them: Python strings, where they are few."""
        return self if len(self) > LARGE else tuple(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Labels, tuple(np.array(x) for x in self._arrays.values())

    def arrays(self) -> dict[str, np.ndarray]:
        """What is written: text, offsets and, where there is one, order."""
        return dict(self._arrays)

    def check(self) -> None:
        """Read everything once, about half a second for a million labels.

        Raises:
            CheckpointError: offsets that do not ascend, no UTF-8, labels that are not sorted, an order with a gap.
        """
        order = self._arrays.get("order")
        if order is not None:
            seen = np.zeros(self._count, bool)
            seen[order[(order >= 0) & (order < self._count)]] = True
            if not seen.all():
                raise damaged("their order leaves some out")
        numbers: Iterable[int] = range(self._count) if self._order is None else self._order
        for (i, a), (j, b) in itertools.pairwise((i, self._label(i)) for i in numbers):
            if a > b or (a == b and (order is None or i > j)):
                raise damaged(f"number {j} is not sorted")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return self.many(range(self._count)[i])
        return self._label(i + self._count if i < 0 else i)

    def __iter__(self) -> Iterator[str]:
        return map(self._label, range(self._count))

    def __contains__(self, label: object) -> bool:
        return isinstance(label, str) and self.find(label) is not None

    def index(self, label: str, start: int = 0, stop: int | None = None) -> int:
        """The number of a label, the lowest where it repeats; ValueError where there is none."""
        for i in self.all(label):
            if i in range(self._count)[start:stop]:
                return i
        raise ValueError(f"{label!r} is no label")

    def many(self, ids: Iterable[int]) -> list[str]:
        """The labels of several numbers; IndexError for one that is not in [0, n)."""
        text, offsets, count, size, touch = self._text, self._offsets, self._count, len(self._text), self._touch
        found, i = list[str](), -1
        try:
            for i in ids.tolist() if isinstance(ids, np.ndarray) else ids:
                if 0 <= i < count and touch is None and 0 <= (start := offsets[i]) <= (end := offsets[i + 1]) <= size:
                    found.append(str(text[start:end], "utf-8", "surrogatepass"))
                else:
                    found.append(self._label(i))  # or what is wrong with it
        except UnicodeDecodeError:
            raise damaged(f"number {i} is no UTF-8") from None
        return found

    def find(self, label: str) -> int | None:
        """The number of a label, the lowest where it repeats; None without one. It reads log₂ n labels."""
        return self._exact(encode(label), 0, self._count)

    def find_all(self, labels: Iterable[str]) -> np.ndarray:
        """The numbers [m] of m labels, −1 where there is none: int64. The more of them, the fewer labels each reads."""
        labels = list(labels)
        asked = sorted(set(labels))
        found: dict[str, int] = {}
        todo = [(0, len(asked), 0, self._count)]
        while todo:  # the middle one first: it halves what the others have to be looked for in
            first, last, low, high = todo.pop()
            if first < last:
                middle = (first + last) // 2
                key = encode(asked[middle])
                at = self._lower(key, low, high)
                found[asked[middle]] = self._number(at) if at < self._count and self._bytes(at) == key else -1
                todo += [(first, middle, low, at), (middle + 1, last, at, high)]
        return np.array([found[label] for label in labels], np.int64)

    def all(self, label: str) -> list[int]:
        """The numbers of a label that may repeat, ascending."""
        key = encode(label)
        low = self._lower(key, 0, self._count)
        return self._numbers(low, self._lower(key + b"\0", low, self._count), lambda label: label == key)

    def prefix(self, text: str, limit: int = 10) -> list[int]:
        """The numbers of the first labels that begin with a text, at most `limit`, in the order of the labels."""
        key = encode(text)
        low = self._lower(key, 0, self._count)
        begun = lambda label: label[: len(key)] == key
        return self._numbers(low, min(low + limit, self._lower(key + END, low, self._count)), begun)

    def nearest(self, text: str, ending: str = "") -> str | None:
        """The label that may have been meant, in a time that does not grow with the number of labels; None without one.

        `ending`, where given, and what follows it in a label, count as no part of it: ", " and what explains a name.

        One in which two letters are exchanged, or one is more, less or other, as late in the text as possible; else the
        most similar of those that stand beside it in the order. None for a text of more than `LONGEST` characters.
        """
        if len(text) > LONGEST:
            return None
        cut: Callable[[str], str] = lambda label: label.partition(ending)[0] if ending else label
        at = self._slip([encode(letter) for letter in text], encode(ending))
        if at is not None:
            return cut(self._label(at))
        low = max(0, self._lower(encode(text), 0, self._count) - COMPARED // 2)
        near = self._numbers(low, min(low + COMPARED, self._count))
        short = [i for i in near if self._offsets[i + 1] - self._offsets[i] <= 4 * LONGEST]
        return next(iter(difflib.get_close_matches(text, map(cut, self.many(short)), 1)), None)

    def _slip(self, letters: list[bytes], more: bytes) -> int | None:
        """The number of a label one slip of the fingers from a text. The sorted labels are walked as a trie is.

        Level i is the span of the labels that begin with the first i letters. Where all of them go on as the text does,
        a slip there leads nowhere; elsewhere only letters that some label has there are tried, `TRIED` in all.
        """
        spans, begun = [(0, self._count)], b""
        for letter in letters:
            begun += letter
            low = self._lower(begun, *spans[-1])
            spans.append((low, self._lower(begun + END, low, spans[-1][1])))
            if low == spans[-1][1]:
                break
        tried, places = 0, [i for i in reversed(range(len(spans))) if spans[i + 1 : i + 2] != [spans[i]]]
        for i in places:
            swapped = b"".join([*letters[:i], *letters[i : i + 2][::-1], *letters[i + 2 :]])
            if (number := self._exact(swapped, *spans[i], more)) is not None:
                return number
        for i in places:
            low, high = spans[i]
            start, here, rest = (b"".join(x) for x in (letters[:i], letters[i : i + 1], letters[i + 1 :]))
            if (number := self._exact(start + rest, low, high, more)) is not None:
                return number
            at = self._lower(start + b"\0", low, high)  # past those that end here
            while at < high and tried < TRIED:
                tried += 1
                label = self._bytes(at)
                if not label.startswith(start) or label == start:
                    raise damaged("they are not sorted")
                lead = label[len(start)]  # says how many bytes the letter has
                letter = label[len(start) :][: 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)]
                for ending in (rest, here + rest) if letter != here else ():
                    if (number := self._exact(start + letter + ending, at, high, more)) is not None:
                        return number
                at = self._lower(start + letter + END, at + 1, high)
        return None

    def _number(self, at: int) -> int:
        """The number of the label at a place of the order."""
        number = at if self._order is None else self._order[at]
        if not 0 <= number < self._count:
            raise damaged(f"their order names number {number}")
        return number

    def _numbers(self, low: int, high: int, right: Callable[[memoryview], bool] = lambda _: True) -> list[int]:
        """The numbers at places [low, high) of the order; where the labels are sorted, each of theirs is right."""
        found = [self._number(at) for at in range(low, high)]
        if not all(right(self._view(i)) for i in found):
            raise damaged("they are not sorted")
        return found

    def _bytes(self, at: int) -> bytes:
        """The label at a place of the order."""
        return bytes(self._view(self._number(at)))

    def _view(self, i: int) -> memoryview:
        start, end = self._offsets[i], self._offsets[i + 1]
        if not 0 <= start <= end <= len(self._text):
            raise damaged(f"number {i} lies outside their text")
        if self._touch is not None:
            self._touch(i, start, end)
        return self._text[start:end]

    def _label(self, i: int) -> str:
        if not 0 <= i < self._count:
            raise IndexError(f"no label has number {i}: they go from 0 to {self._count - 1}")
        try:
            return str(self._view(i), "utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise damaged(f"number {i} is no UTF-8") from None

    def _exact(self, key: bytes, low: int, high: int, more: bytes = b"") -> int | None:
        """The number of the label that is a key, or where `more` is given begins with it and that."""
        at = self._lower(key, low, high)
        if at < high and self._bytes(at) == key:
            return self._number(at)
        at = self._lower(key + more, at, high) if more else high
        return self._number(at) if at < high and self._bytes(at).startswith(key + more) else None

    def _lower(self, key: bytes, low: int, high: int) -> int:
        """The first place of the order in [low, high) whose label is not below a key, else `high`."""
        text, offsets, order, length, size = self._text, self._offsets, self._order, len(key), len(self._text)
        while low < high:
            middle = (low + high) >> 1
            i = middle if order is None else self._number(middle)
            start, end = offsets[i], offsets[i + 1]
            if not 0 <= start <= end <= size:
                raise damaged(f"number {i} lies outside their text")
            if self._touch is not None:
                self._touch(i, start, end)
            if end - start > length:  # what follows makes it no smaller
                end = start + length
            if text[start:end].tobytes() < key:
                low = middle + 1
            else:
                high = middle
        return low


def damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the labels are damaged: {what}; make or fetch the student again")
