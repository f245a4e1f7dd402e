"""Graphs by name or from a folder: WN18RR, FB15k-237, what PyKEEN carries, and train, valid and test of one's own."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pooch
import torch
from tqdm import tqdm

from kgdistil.answer.files import user_folder
from kgdistil.answer.published import DATA_VARIABLE, SHA256, at_hand, cache_folder, read, sha256, unpacked
from kgdistil.errors import DataError
from kgdistil.graph import BUNDLED, NAMES, PUBLISHED, SPLITS, Graph
from kgdistil.graphs import checks
from kgdistil.graphs.labels import show, tidy

log = logging.getLogger("kgdistil")
ARCHIVES_URL = "https://raw.githubusercontent.com/TimDettmers/ConvE/master"
TEXTS_URL = "https://raw.githubusercontent.com/yao8839836/kg-bert/master/data"


def dataset_of(graph: Graph) -> str:
    """A graph's name in a run's config: one of one's own is told from others of that name."""
    return graph.name if graph.name in NAMES else f"{graph.name or 'graph'}-{graph.sha256[:8]}"


def load(source: str | os.PathLike, *, cache: Path | None = None) -> Graph:
    """Load a graph from a folder, or by name in any case: wn18rr, fb15k-237, umls, kinships or nations.

    WN18RR and FB15k-237 are read from the folder that the environment variable KGDISTIL_DATA names, else from
    `cache` (default: the user's cache folder), else downloaded there from their author. UMLS, Kinships and
    Nations come out of the installed PyKEEN package. A folder holds train, valid and test as .txt or .tsv
    (`read_triples`); one that is called like a known graph is reached as "./umls". Entities of all splits are
    kept; every relation must occur in training; a triple may stand in two splits; labels stay as they are, and two that
    look the same are refused (`read_graph` makes them one).

    `Graph.sha256` is the sum of the archive; of three files it is the sum of what the shell command
    `sha256sum train.txt valid.txt test.txt` prints in their folder. Anything missing, damaged or malformed
    raises DataError.
    """
    name = source.lower() if isinstance(source, str) else None
    if name in NAMES and os.path.exists(source):
        log.warning("%s is the known graph of that name; the one that lies here is reached as ./%s", source, source)
    if name in PUBLISHED:
        return _load_published(name, cache_folder(cache))
    if name in BUNDLED:
        spec = importlib.util.find_spec("pykeen")  # importing PyKEEN itself would take seconds
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f'{name} comes with PyKEEN, which is missing: pip install "kgdistil[notebooks]"')
        return _load_folder(name, Path(spec.submodule_search_locations[0]) / "datasets" / name)
    path = os.path.expanduser(source)
    if not os.path.isdir(path):
        raise DataError(
            f"{show(os.fsdecode(source))} is neither a folder nor a known graph: give a folder with train.txt, "
            f"valid.txt and test.txt, or one of {', '.join(NAMES)}"
        )
    return _load_folder(Path(path).resolve().name, Path(path))


def read_triples(path: str | os.PathLike, content: bytes | None = None) -> np.ndarray:
    r"""Read tab-separated labels head, relation, tail: an object array [n, 3] of str, row i being line i + 1.

    UTF-8, with or without a byte order mark. Only \n or \r\n ends a line, so a label may hold any other
    character but a tab. `content`: the bytes, where they are read already; `path` then only names them.
    Raises DataError, naming file, line and value, for a missing or empty file, a byte that is not UTF-8, a
    blank or duplicate line, a number of columns other than three, and an empty label.
    """
    try:
        text = (read(path) if content is None else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise DataError(f"{path}, line {at}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8") from None
    if not text:
        raise DataError(f"{path} is empty: it needs at least one line with head, relation and tail")
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    # Whole-list checks are fast; which line is at fault is looked for only once one is known to be.
    if "" in lines:
        raise DataError(f"{path}, line {lines.index('') + 1}: blank line; remove it")
    for number, line in enumerate(lines, 1):
        if (tabs := line.count("\t")) != 2:
            fault = f"{tabs + 1} column(s) in place of 3 (head, relation, tail, separated by tabs)"
            raise DataError(f"{path}, line {number}: {fault}: {show(line)}")
    if len(set(lines)) < len(lines):
        first: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if (earlier := first.setdefault(line, number)) != number:
                fault = f"duplicate of line {earlier}"
                raise DataError(f"{path}, line {number}: {fault}: {show(line)}; remove one of the two")
    labels = "\t".join(lines).split("\t")
    if "" in labels:
        row, column = divmod(labels.index(""), 3)
        what = ("head", "relation", "tail")[column]
        raise DataError(f"{path}, line {row + 1}: the {what} is empty: {show(lines[row])}; give it a label")
    return np.array(labels, dtype=object).reshape(-1, 3)


def fetch_descriptions(name: str, *, cache: Path | None = None) -> dict[str, str]:
    """Fetch readable names by entity label of "wn18rr" or "fb15k-237"; from then on `load` finds them too.

    They come from the KG-BERT repository. WordNet's lines are "name, gloss", of which the name is kept (two
    senses may share one). Raises DataError where `name` has no such file or it cannot be had.
    """
    if name.lower() not in PUBLISHED:
        raise DataError(f"no readable names are published for {show(name)}, only for {', '.join(PUBLISHED)}")
    official = PUBLISHED[name.lower()]
    text = _published(f"{official}-entity2text.txt", f"{TEXTS_URL}/{official}/entity2text.txt", cache_folder(cache))
    return _parse_descriptions(name.lower(), text)


def _parse_descriptions(name: str, content: bytes) -> dict[str, str]:
    pairs = (line.split("\t", 1) for line in content.decode().removesuffix("\n").split("\n"))
    return {label: text.split(", ")[0] if name == "wn18rr" else text for label, text in pairs}


def _load_published(name: str, cache: Path | None) -> Graph:
    file = f"{PUBLISHED[name]}.tar.gz"
    content = _published(file, f"{ARCHIVES_URL}/{file}", cache)
    members = unpacked(file, content)
    triples = {f"{file}/{split}.txt": read_triples(f"{file}/{split}.txt", members[split]) for split in SPLITS}
    text = at_hand(f"{PUBLISHED[name]}-entity2text.txt", cache)
    return _graph(name, triples, sha256(content), _parse_descriptions(name, text) if text else {})


def _load_folder(name: str, folder: Path) -> Graph:
    triples, sums = {}, ""
    for split in SPLITS:
        found = [path for ending in ("txt", "tsv") if (path := folder / f"{split}.{ending}").is_file()]
        if len(found) != 1:
            count = "both" if found else "neither"
            raise DataError(f"{folder} holds {count} of {split}.txt and {split}.tsv: it needs exactly one")
        content = read(found[0])
        triples[str(found[0])] = read_triples(found[0], content)
        sums += f"{sha256(content)}  {found[0].name}\n"
    words, numbers = np.unique(np.concatenate(list(triples.values())), return_inverse=True)
    if order := checks.likely_order(numbers.reshape(-1, 3)):
        raise DataError(
            f'{folder}: its columns are likely in the order {order}, not hrt; read it with read_graph, order="{order}"'
        )
    if doubt := checks.doubtful_order(numbers.reshape(-1, 3)):
        log.warning("%s: %s", name, doubt)
    graph, plain = _graph(name, triples, sha256(sums.encode()), {}), dict[str, str]()
    for word in words:
        if (other := plain.setdefault(tidy(word), word)) != word:
            raise DataError(
                f"{folder}: the labels {show(other)} and {show(word)} look the same; correct one of them, or read the "
                "folder with read_graph, which makes them one"
            )
    return graph


def _graph(name: str, labels: dict[str, np.ndarray], sha256: str, descriptions: dict[str, str]) -> Graph:
    """Number the labels of the three splits, given as [n, 3] arrays by file name in the order of SPLITS."""
    train, *_ = labels.values()
    trained = set(train[:, 1])
    for file, rows in labels.items():
        if unseen := set(rows[:, 1]) - trained:
            line, value = next((i, r) for i, r in enumerate(rows[:, 1], 1) if r in unseen)
            fault = f"relation {show(value)} never occurs in training"
            raise DataError(f"{file}, line {line}: {fault}; remove the line or add training triples of it")
    entities = sorted(set().union(*(rows[:, column] for rows in labels.values() for column in (0, 2))))
    relations = sorted(trained)
    # A dict, not pandas.factorize: as fast here, and labels with a NUL character stay apart in every release.
    entity_ids, relation_ids = (dict(zip(words, range(len(words)))) for words in (entities, relations))
    splits = []
    for rows in labels.values():
        ids = np.empty(rows.shape, dtype=np.int64)
        for column, index in enumerate((entity_ids, relation_ids, entity_ids)):
            ids[:, column] = np.fromiter(map(index.__getitem__, rows[:, column]), np.int64, len(rows))
        splits.append(torch.from_numpy(ids))
    at_hand = {label: descriptions[label] for label in entities if label in descriptions}
    return Graph(name, splits[0], splits[1], splits[2], tuple(entities), tuple(relations), sha256, at_hand)


def _published(file: str, url: str, cache: Path | None) -> bytes:
    """The bytes of a published file: from KGDISTIL_DATA, else from `cache`, else downloaded into it."""
    if (content := at_hand(file, cache)) is not None:
        return content
    cache = cache or user_folder("cache")  # which says what to do where there is no home
    pooch.get_logger().setLevel("WARNING")  # its "Downloading ..." line would double our progress bar
    outer = sys.exception()
    try:
        # disable=None means no bar without a terminal; the total is replaced once the server tells it.
        with tqdm(desc=file, total=1, unit="B", unit_scale=True, disable=None) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar)
            return read(pooch.retrieve(url, SHA256[file], fname=file, path=cache, downloader=downloader))
    except (OSError, ValueError) as error:  # whatever requests and pooch raise is one of the two
        cause: BaseException = error
        while cause.__context__ not in (None, outer):  # the innermost says plainly what happened
            cause = cause.__context__
        reason = " ".join(str(cause).split(". ")[0].split())
        raise DataError(
            f"cannot fetch {url} into {cache}: {reason}; try again, or put {file} into a folder "
            f"and name that folder in the environment variable {DATA_VARIABLE}"
        ) from None
