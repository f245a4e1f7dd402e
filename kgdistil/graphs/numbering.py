"""Labels become numbers: Arrow keeps each label once, and Python looks only at those that a rule may change."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kgdistil.answer import labels as packed

TEXT = pa.large_string()
PLAIN = "^[!#-~][!-~]*( [!-~]+)*$"  # labels that `labels.tidy` and `labels.unquoted` leave as they are
PENDING = 512 << 20  # bytes of labels that wait until they are compared with those before
BATCH = 1 << 20  # labels that are Python strings at any one time

Part = tuple[Any, pa.Array, np.ndarray]  # where the rows begin, distinct labels, their places in them as int32 [n, 3]


def encoded(start: Any, *columns: list[str]) -> Part:
    """Three columns of labels as a part of a source.

    Raises:
        UnicodeEncodeError: a label holds a lone surrogate.
    """
    coded = pa.array([x for column in columns for x in column], TEXT).dictionary_encode()
    return start, coded.dictionary, coded.indices.to_numpy().reshape(3, -1).T


def cells(start: Any, block: bytes, ends: np.ndarray, width: int, order: Sequence[int]) -> Part:
    """The same of a text.

    Args:
        block: UTF-8, each of whose cells is followed by one byte.
        ends: int64 [n × width], the places of those bytes.
        order: which columns are head, relation and tail.
    """
    text = block.replace(b"\n", b"\t")  # one sort of end, so that equal cells are equal with it
    offsets = np.concatenate([[0], ends + 1])
    found = pa.Array.from_buffers(TEXT, len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    if width > 3:
        found = found.take(pa.array((np.arange(0, len(ends), width)[:, None] + order).reshape(-1)))
        order = range(3)
    coded = found.dictionary_encode()
    words = pc.binary_slice(coded.dictionary.view(pa.large_binary()), 0, -1).view(TEXT)
    return start, words, coded.indices.to_numpy().reshape(-1, 3)[:, list(order)]


@dataclass
class Numbered:
    """Triples that are numbers already: int64 [n, 3] of labels' places in two lists."""

    what: str  # their name in error lines
    entities: pa.Array
    relations: pa.Array
    triples: np.ndarray

    def part(self) -> Part:
        places = self.triples.astype(np.int32)
        places[:, 1] += len(self.entities)
        return 0, pa.concat_arrays([self.entities, self.relations]), places


class Pool:
    """Distinct texts in the order in which they first came."""

    def __init__(self) -> None:
        self.words = pa.array([], TEXT)

    def __len__(self) -> int:
        return len(self.words)

    def add(self, *texts: pa.Array) -> np.ndarray:
        """The numbers of texts, int32, which are added where they are new."""
        given = [x for x in (self.words, *texts) if len(x)]
        if not given:
            return np.empty(0, np.int32)
        before, coded = len(self), pa.chunked_array(given).dictionary_encode().chunks
        self.words = coded[-1].dictionary
        return np.concatenate([x.indices.to_numpy() for x in coded])[before:]

    def add_few(self, texts: pa.Array) -> np.ndarray:
        """The same without a look-up table of all that is there."""
        coded = texts.dictionary_encode()
        there = pc.index_in(self.words, value_set=coded.dictionary)
        at = np.flatnonzero(there.is_valid().to_numpy(zero_copy_only=False))
        numbers = np.full(len(coded.dictionary), -1, np.int32)
        numbers[there.take(pa.array(at)).to_numpy()] = at
        new = np.flatnonzero(numbers < 0)
        numbers[new] = len(self) + np.arange(len(new), dtype=np.int32)
        self.words = pa.concat_arrays([self.words, coded.dictionary.take(pa.array(new))]) if len(new) else self.words
        return numbers[coded.indices.to_numpy()]

    def some(self, ids: np.ndarray | Iterable[int]) -> list[str]:
        """The texts of some numbers."""
        return self.words.take(pa.array(np.asarray(ids, np.int64))).to_pylist()


class Read:
    """What was read of a source: its triples as numbers of the labels that stand there."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.blocks: list[tuple[Any, np.ndarray]] = []
        self._waiting: list[tuple[Any, pa.Array, np.ndarray]] = []
        self._bytes = 0

    def add(self, start: Any, words: pa.Array, codes: np.ndarray) -> None:
        self._waiting.append((start, words, codes))
        self._bytes += words.nbytes
        if self._bytes > PENDING:
            self.merge()

    def merge(self) -> None:
        """Compare the labels that wait with those before."""
        new, end = [words for _, words, _ in self._waiting], 0
        few = 4 * self._bytes < self.pool.words.nbytes
        numbers = self.pool.add_few(pa.concat_arrays(new)) if few and new else self.pool.add(*new)
        for i, (start, words, codes) in enumerate(self._waiting):
            begin, end = end, end + len(words)
            self.blocks.append((start, numbers[begin:end][codes]))
            self._waiting[i] = (start, words[:0], codes[:0])  # each is let go when it is done with
        self._waiting, self._bytes = [], 0
        pa.default_memory_pool().release_unused()

    def first(self, wanted: np.ndarray) -> tuple[str, int, str] | None:
        """Where one of some labels, bool [labels], comes first: line or row, column, the label."""
        for start, codes in self.blocks:
            if (hit := wanted[codes]).any():
                column = int(hit.any(0).argmax())
                row = int(hit[:, column].argmax())
                where = f"row {start + row}" if isinstance(start, int) else f"line {start[row]}"
                return where, column, self.pool.some([codes[row, column]])[0]
        return None

    def triples(self, numbers: np.ndarray) -> np.ndarray:
        """All triples, int64 [n, 3], of other numbers for the labels; they are gone here then."""
        made = np.empty((sum(len(codes) for _, codes in self.blocks), 3), np.int64)
        end = len(made)
        while self.blocks:
            _, codes = self.blocks.pop()
            made[end - len(codes) : end] = numbers[codes]
            end -= len(codes)
        return made


class Numbering:
    """The labels of all sources as they are kept, each with its number; and, unused, those that were changed."""

    def __init__(self) -> None:
        self.pool, self.changed = Pool(), Pool()
        self.example = ""  # of a label that was changed
        self._plain = self._became = np.zeros(0, bool)  # whether a label was found as it is; came out of a changed one

    def number(self, words: pa.Array, clean: Callable[[str], str]) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of distinct labels, int32, −1 where nothing is left of one; and which were changed, bool."""
        odd = (
            pc.equal(pc.binary_length(words), 0) if clean is str else pc.invert(pc.match_substring_regex(words, PLAIN))
        )
        doubtful = np.flatnonzero(odd.to_numpy(zero_copy_only=False))
        changed, empty, texts = np.zeros(len(words), bool), list[int](), [pa.array([], TEXT)]
        for at in np.split(doubtful, range(BATCH, len(doubtful), BATCH)):
            before = words.take(pa.array(at)).to_pylist()
            after = [clean(word) for word in before]
            changed[at] = differs = np.array([a != b for a, b in zip(before, after)], bool)
            empty += [i for i, word in zip(at.tolist(), after) if not word]
            texts.append(pa.array([word for word, new in zip(after, differs) if new], TEXT))
        if len(self.pool):
            numbers = self.pool.add(words)
        else:  # they are distinct
            self.pool.words, numbers = words, np.arange(len(words), dtype=np.int32)
        if changed.any():
            self.changed.add(words.filter(pa.array(changed)))
            numbers[changed] = self.pool.add_few(pa.concat_arrays(texts))
        self._plain, self._became = (
            np.concatenate([x, np.zeros(len(self.pool) - len(x), bool)]) for x in (self._plain, self._became)
        )
        self._plain[numbers[~changed]] = self._became[numbers[changed]] = True
        numbers[empty] = -1
        return numbers, changed

    @property
    def merged(self) -> int:
        """How many labels became one with another."""
        return len(self.changed) - int((self._became & ~self._plain).sum())


def ranked(pool: Pool, used: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """Those labels of a pool that are used, bool, sorted by code point; and the place of each of the pool's there."""
    order = pc.array_sort_indices(pool.words).to_numpy()  # by bytes of UTF-8, which is by code point
    order = order[used[order]]
    place = np.zeros(len(pool), np.int64)
    place[order] = np.arange(len(order))
    return pool.words.take(pa.array(order)), place


def kept(words: pa.Array) -> Sequence[str]:
    """Sorted labels as a graph has them."""
    if len(words) <= packed.LARGE:
        return tuple(words.to_pylist())
    words = words if words.offset == 0 else pa.concat_arrays([words])
    _, offsets, text = words.buffers()
    offsets = np.frombuffer(offsets, np.int64)[: len(words) + 1]
    return packed.Labels(np.frombuffer(text, np.uint8)[: offsets[-1]], offsets)


def feed(digest: hashlib._Hash, words: pa.Array) -> None:
    """Give labels to a sum, each after its number of characters and a colon."""
    for start in range(0, len(words), BATCH):
        part = words.slice(start, BATCH)
        lengths = pc.utf8_length(part).cast(TEXT)
        joined = pc.binary_join_element_wise(lengths, part, pa.scalar(":", TEXT))
        offsets = np.frombuffer(joined.buffers()[1], np.int64)
        digest.update(joined.buffers()[2][int(offsets[0]) : int(offsets[len(joined)])])
