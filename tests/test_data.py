"""Graphs: sizes, labels, every kind of bad input, and the real download code against a local HTTP server."""

import dataclasses
import hashlib
import http.server
import importlib.util
import io
import logging
import os
import re
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kgdistil.errors import DataError
from kgdistil.graph import NAMES, PUBLISHED, SPLITS, Graph
from kgdistil.graphs import datasets
from kgdistil.graphs.datasets import fetch_descriptions, load, read_triples

needs_archives = pytest.mark.skipif(
    not os.environ.get(datasets.DATA_VARIABLE), reason="KGDISTIL_DATA names no folder with the published archives"
)
needs_pykeen = pytest.mark.skipif(importlib.util.find_spec("pykeen") is None, reason="PyKEEN is missing")

SMALL = {"train": "b\tlikes\tc\na\tknows\tb\n", "valid": "c\tlikes\ta\n", "test": "a\tlikes\tnew in test\n"}


def write_folder(folder: Path, ending: str = "txt", **splits: str | bytes) -> Path:
    """A folder with the graph SMALL, in which the given splits are replaced."""
    folder.mkdir(exist_ok=True)
    for split, text in (SMALL | splits).items():
        (folder / f"{split}.{ending}").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def pack(**members: str) -> bytes:
    """A .tar.gz with one text file per member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(f"{name}.txt")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# --- Real graphs -----------------------------------------------------------------------------------


@needs_archives
@pytest.mark.parametrize(
    "name, sizes, label, readable",
    [
        ("WN18RR", (40_943, 11, 86_835, 3_034, 3_134), "08769179", "saxony"),
        ("fb15k-237", (14_541, 237, 272_115, 17_535, 20_466), "/m/06rf7", "Schleswig-Holstein"),
    ],
)
def test_published_graphs_have_the_sizes_of_table_2(name, sizes, label, readable, tmp_path):
    graph = load(name, cache=tmp_path)
    assert tuple(graph.sizes().values()) == sizes
    assert graph.name == name.lower()
    assert graph.sha256 == datasets.SHA256[f"{PUBLISHED[name.lower()]}.tar.gz"]
    assert len(torch.unique(graph.known, dim=0)) == sum(sizes[2:])  # the three splits share no triple
    assert not any(character in text for text in graph.entities + graph.relations for character in "\r\n\t")
    if graph.descriptions:
        assert graph.readable(graph.entities.index(label)) == readable
        assert set(graph.descriptions) == set(graph.entities)


@needs_pykeen
@pytest.mark.parametrize(
    "name, sizes",
    [
        ("umls", (135, 46, 5_216, 652, 661)),
        ("Kinships", (104, 25, 8_544, 1_068, 1_074)),
        ("NATIONS", (14, 55, 1_592, 199, 201)),
    ],
)
def test_bundled_graphs_come_out_of_pykeen(name, sizes):
    graph = load(name)
    assert tuple(graph.sizes().values()) == sizes
    assert graph.descriptions == {} and graph.readable(0) == graph.entities[0]


def test_bundled_graph_without_pykeen_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "kgdistil[notebooks]"' in error_of(load, "umls")


# --- The graph of a folder -------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["txt", "tsv"])
def test_folder(tmp_path, ending):
    graph = load(write_folder(tmp_path / "mine", ending))
    assert graph.name == "mine"
    assert graph.entities == ("a", "b", "c", "new in test")  # sorted; the one of test alone is kept
    assert graph.relations == ("knows", "likes")
    assert graph.train.dtype == torch.int64
    assert graph.train.tolist() == [[1, 1, 2], [0, 0, 1]]  # in the order of the file
    assert graph.known.tolist() == [[1, 1, 2], [0, 0, 1], [2, 1, 0], [0, 1, 3]]
    assert graph.sizes() == {"entities": 4, "relations": 2, "train": 2, "valid": 1, "test": 1}
    assert graph.label_triple(*graph.test[0]) == ("a", "likes", "new in test")
    assert "4 entities" in repr(graph)
    assert load(str(tmp_path / "mine")).train.equal(graph.train)


def test_ids_depend_on_the_labels_alone(tmp_path):
    first = load(write_folder(tmp_path / "one"))
    second = load(write_folder(tmp_path / "two", train="a\tknows\tb\nb\tlikes\tc\n"))
    assert (first.entities, first.relations) == (second.entities, second.relations)
    assert first.train.flip(0).equal(second.train)


def test_sha256_of_a_folder_is_that_of_the_output_of_sha256sum(tmp_path):
    sums = "".join(f"{sha256(text.encode())}  {split}.txt\n" for split, text in SMALL.items())
    assert load(write_folder(tmp_path)).sha256 == sha256(sums.encode())


def test_graph_moves_and_is_frozen(tmp_path):
    graph = load(write_folder(tmp_path))
    moved = graph.to("meta")  # a device that every machine has
    assert {t.device.type for t in (moved.train, moved.valid, moved.test, moved.known)} == {"meta"}
    assert graph.train.device.type == "cpu" and isinstance(moved, Graph) and moved.entities == graph.entities
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.train = graph.test
    assert graph == graph and graph != load(tmp_path)  # identity: tensors have no single truth value


# --- Bad input -------------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones():
    message = error_of(load, "wn18")
    assert "'wn18'" in message and all(name in message for name in NAMES)


def test_a_file_is_not_a_folder(tmp_path):
    path = write_folder(tmp_path) / "train.txt"
    assert str(path) in error_of(load, path)


@pytest.mark.parametrize(
    "split, text, parts",
    [
        ("train", "", ["is empty"]),
        ("valid", "\ufeff", ["is empty"]),
        ("train", "a\tr\tb\na\tr\n", ["line 2", "2 column", r"'a\tr'"]),
        ("test", "a\tlikes\tb\tc\n", ["line 1", "4 column", r"'a\tlikes\tb\tc'"]),
        ("train", "a\tr\tb\n \n", ["line 2", "1 column", "' '"]),
        ("train", "a,r,b\n", ["line 1", "1 column", "'a,r,b'", "tabs"]),
        ("train", "x" * 10_000 + "\n", ["line 1", "x…'"]),
        ("train", b"a\tr\tb\nc\tr\t\xffd\n", ["line 2", "0xff", "UTF-8"]),
        ("train", b"\xef\xbb\xbfa\tr\tb\n\nc\tr\t\xe9\n", ["line 3", "0xe9"]),
        ("train", "a\tr\tb\r\n\r\nb\tr\ta\r\n", ["line 2", "blank"]),
        ("train", "a\tr\tb\n\n", ["line 2", "blank"]),
        ("train", "\n", ["line 1", "blank"]),
        ("valid", "a\tlikes\tb\nc\tlikes\tb\r\na\tlikes\tb", ["line 3", "line 1", r"'a\tlikes\tb'"]),
        ("train", "a\tr\tb\n\tr\tb\n", ["line 2", "head is empty", r"'\tr\tb'"]),
        ("train", "a\t\tb\n", ["line 1", "relation is empty", r"'a\t\tb'"]),
        ("train", "a\tr\tb\na\tr\t\r\n", ["line 2", "tail is empty", r"'a\tr\t'"]),
        ("valid", "a\tlikes\tb\na\thates\tb\n", ["line 2", "'hates'", "training"]),
        ("test", "a\tlikes \tb\n", ["line 1", "'likes '", "training"]),
    ],
)
def test_bad_file_names_file_line_and_value(tmp_path, split, text, parts):
    message = error_of(load, write_folder(tmp_path, **{split: text}))
    for part in [str(tmp_path / f"{split}.txt"), *parts]:
        assert part in message


def test_labels_that_look_the_same_and_another_order_are_refused(tmp_path):
    message = error_of(load, write_folder(tmp_path, test="c\tknows\ta\u00a0\n"))
    assert "look the same" in message and "read_graph" in message
    rows = "".join(f"e{i}\te{(i * i) % 7}\t{'rs'[i % 2]}\n" for i in range(7))
    assert 'order="htr"' in error_of(load, write_folder(tmp_path, train=rows, valid=rows, test=rows))


@pytest.mark.parametrize("split", SPLITS)
def test_folder_without_a_split(tmp_path, split):
    (write_folder(tmp_path) / f"{split}.txt").unlink()
    message = error_of(load, tmp_path)
    assert str(tmp_path) in message and f"neither of {split}.txt" in message


def test_folder_with_a_split_twice(tmp_path):
    (write_folder(tmp_path) / "valid.tsv").write_text("old")
    assert "both of valid.txt and valid.tsv" in error_of(load, tmp_path)


def test_missing_file_and_named_pipe(tmp_path):
    assert "no.txt is missing" in error_of(read_triples, tmp_path / "no.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "pipe is missing or no regular file" in error_of(read_triples, tmp_path / "pipe")


# --- The parser, by properties ---------------------------------------------------------------------

# "\r" is left out because a label that ends a line with it reads as \r\n; "\ufeff" because at the start of a
# file it is the byte order mark. The next test holds both, and the characters str.splitlines would break at.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\ufeff")
labels = st.text(characters, min_size=1, max_size=8)
rows = st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=12, unique=True)


@given(rows, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@example([("a\0b", "r", "a\0c"), ("\x85", "\u2028", "\x0b \x1c")], "\n", True, False)
def test_labels_survive_the_round_trip(triples, end, last_end, mark):
    text = end.join("\t".join(row) for row in triples) + end * last_end
    read = read_triples("x", text.encode("utf-8-sig" if mark else "utf-8"))
    assert [tuple(row) for row in read] == triples
    graph = datasets._graph("x", {"train": read, "valid": read, "test": read}, "", {})
    assert [graph.label_triple(*row) for row in graph.test] == triples
    assert list(graph.entities) == sorted({label for h, _, t in triples for label in (h, t)})


def test_only_newline_ends_a_line():
    assert read_triples("x", "a\rb\tr\x85\tc\u2028\n\ufeffa\tr\u2029\tb\r\r\n".encode()).tolist() == [
        ["a\rb", "r\x85", "c\u2028"],
        ["\ufeffa", "r\u2029", "b\r"],
    ]


pieces = [b"a", b"b", b"\t", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xc3\xa9"]


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(pieces)).map(b"".join)))
def test_any_bytes_give_labels_or_one_error(content):
    try:
        read = read_triples("some.txt", content)
    except DataError as error:
        assert str(error).startswith("some.txt") and "\n" not in str(error)
    else:
        assert isinstance(read, np.ndarray) and read.shape == (len(read), 3) and len(read) > 0
        assert all(isinstance(label, str) and label for label in read.ravel())
        assert len({tuple(row) for row in read}) == len(read)


# --- Downloads -------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (content by path), of those in `cut` only the first half, and notes what was `asked`."""

    daemon_threads = True

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.server.files.get(self.path)
            self.send_response(404 if content is None else 200)
            content = content or b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in self.server.cut else content)

        def log_message(self, *args):
            pass

    def __init__(self):
        self.files, self.cut, self.asked = {}, set(), []
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


ARCHIVE = pack(**SMALL)
TEXT = b'a\talpha, the first; "alpha, beta"\nb\tbeta male, a man\nzz\tnot in the graph, at all\n'


@pytest.fixture
def server(monkeypatch):
    """A server that publishes the graph SMALL as WN18RR, and nothing at hand on this machine."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        server.files = {"/WN18RR.tar.gz": ARCHIVE, "/WN18RR/entity2text.txt": TEXT}
        monkeypatch.delenv(datasets.DATA_VARIABLE, raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(datasets, "ARCHIVES_URL", server.url)
        monkeypatch.setattr(datasets, "TEXTS_URL", server.url)
        for file, content in {"WN18RR.tar.gz": ARCHIVE, "WN18RR-entity2text.txt": TEXT}.items():
            monkeypatch.setitem(datasets.SHA256, file, sha256(content))
        yield server
        server.shutdown()


def test_download_once_then_cache(server, tmp_path, capfd):
    pooch.get_logger().setLevel("INFO")  # its default
    cache = tmp_path / "not" / "there yet"
    graph = load("wn18rr", cache=cache)
    assert graph.sizes() == {"entities": 4, "relations": 2, "train": 2, "valid": 1, "test": 1}
    assert graph.sha256 == sha256(ARCHIVE)
    assert capfd.readouterr() == ("", "")  # no terminal, no bar
    assert pooch.get_logger().level > logging.INFO  # and no chatter: pooch holds the stderr of its import
    assert load("WN18RR", cache=cache).train.equal(graph.train)
    assert server.asked == ["/WN18RR.tar.gz"] and [x.name for x in cache.iterdir()] == ["WN18RR.tar.gz"]


def test_progress_on_a_terminal(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    load("wn18rr", cache=tmp_path)
    assert "WN18RR.tar.gz: 100%" in capfd.readouterr().err


def test_default_cache_is_the_users(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load("wn18rr")
    assert (tmp_path / "kgdistil" / "WN18RR.tar.gz").read_bytes() == ARCHIVE


def refuse(server, monkeypatch):
    with socket.socket() as unused:  # bound and closed again: nobody listens there
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets, "ARCHIVES_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")


DOWNLOAD_FAULTS = {
    "no network": (refuse, "refused"),
    "truncated": (lambda s, m: s.cut.add("/WN18RR.tar.gz"), "bytes"),
    "wrong hash": (lambda s, m: s.files.update({"/WN18RR.tar.gz": b"<html>"}), sha256(b"<html>")),
    "not found": (lambda s, m: s.files.clear(), "404"),
}


@pytest.mark.parametrize("held", [None, b"damaged"], ids=["empty cache", "damaged cache"])
@pytest.mark.parametrize("fault", DOWNLOAD_FAULTS)
def test_failed_download_says_why_and_leaves_nothing(server, tmp_path, monkeypatch, fault, held):
    if held:
        (tmp_path / "WN18RR.tar.gz").write_bytes(held)
    cause, reason = DOWNLOAD_FAULTS[fault]
    with monkeypatch.context() as broken:
        cause(server, broken)
        try:
            raise LookupError("another error, handled while loading, is not the reason")
        except LookupError:
            message = error_of(load, "wn18rr", cache=tmp_path)
        assert f"{datasets.ARCHIVES_URL}/WN18RR.tar.gz" in message and reason in message
        assert datasets.DATA_VARIABLE in message and "another error" not in message
        assert [x.name for x in tmp_path.iterdir()] == (["WN18RR.tar.gz"] if held else [])
    server.cut.clear()
    server.files["/WN18RR.tar.gz"] = ARCHIVE
    assert load("wn18rr", cache=tmp_path).num_entities == 4  # a later good attempt works
    assert [x.name for x in tmp_path.iterdir()] == ["WN18RR.tar.gz"]


def test_full_disk_or_bad_cache_folder(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = error_of(load, "wn18rr", cache=tmp_path / "file")
    assert str(tmp_path / "file") in message and (tmp_path / "file").read_text() == "mine"


def test_local_folder_comes_first_and_is_checked(server, tmp_path, monkeypatch):
    local, cache = tmp_path / "local", tmp_path / "cache"
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(local))
    assert str(local) in error_of(load, "wn18rr", cache=cache)  # the folder itself is not there
    local.mkdir()
    (local / "WN18RR.tar.gz").write_bytes(ARCHIVE)
    assert load("wn18rr", cache=cache).num_relations == 2
    (local / "WN18RR.tar.gz").write_bytes(ARCHIVE[:-1])
    message = error_of(load, "wn18rr", cache=cache)
    assert str(local / "WN18RR.tar.gz") in message and sha256(ARCHIVE[:-1]) in message
    assert server.asked == [] and not cache.exists()
    (local / "WN18RR.tar.gz").unlink()  # an absent file falls through to the download
    assert load("wn18rr", cache=cache).num_relations == 2
    assert server.asked == ["/WN18RR.tar.gz"]


@pytest.mark.parametrize("content", [b"no archive", ARCHIVE[:-20], pack(train="a\tr\tb\n"), b""])
def test_archive_that_is_none(server, tmp_path, monkeypatch, content):
    monkeypatch.setitem(datasets.SHA256, "WN18RR.tar.gz", sha256(content))
    server.files["/WN18RR.tar.gz"] = content
    assert "WN18RR.tar.gz is no archive" in error_of(load, "wn18rr", cache=tmp_path)


def test_bad_line_in_an_archive_names_the_member(server, tmp_path, monkeypatch):
    server.files["/WN18RR.tar.gz"] = content = pack(**SMALL | {"valid": "a\tlikes\n"})
    monkeypatch.setitem(datasets.SHA256, "WN18RR.tar.gz", sha256(content))
    assert re.match(r"WN18RR\.tar\.gz/valid\.txt, line 1: 2 column", error_of(load, "wn18rr", cache=tmp_path))


def test_descriptions_are_optional(server, tmp_path, monkeypatch):
    graph = load("wn18rr", cache=tmp_path)
    assert graph.descriptions == {} and graph.readable(0) == "a"
    (tmp_path / "WN18RR-entity2text.txt").write_bytes(b"damaged")
    assert load("wn18rr", cache=tmp_path).descriptions == {}
    names = {"a": "alpha", "b": "beta male", "zz": "not in the graph"}
    assert fetch_descriptions("WN18RR", cache=tmp_path) == names
    graph = load("wn18rr", cache=tmp_path)
    assert graph.descriptions == {"a": "alpha", "b": "beta male"}
    assert [graph.readable(i) for i in range(3)] == ["alpha", "beta male", "c"]
    server.files.clear()
    assert "404" in error_of(fetch_descriptions, "wn18rr", cache=tmp_path / "other")
    assert "'umls'" in error_of(fetch_descriptions, "umls")
