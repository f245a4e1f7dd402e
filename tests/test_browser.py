"""What the browser computes is what Python computes: node runs the page's own module on folders that are served."""

import dataclasses
import itertools
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch
import xxhash
from ranges import Ranges, large_student
from test_nested import nested

from kgdistil import build_model, records
from kgdistil.answer.format import BLOCK
from kgdistil.compress.size import PRECISIONS
from kgdistil.compress.whole import keep_frequent
from kgdistil.models import MODELS, kind_of
from kgdistil.students.labelled import Labelled

MODULE = records.root() / "book" / "site" / "try" / "kge.mjs"
K = 11
SCRIPT = """
const [kge, address, asked, whole] = process.argv.slice(1);
const { openStudent } = await import(kge);
const students = {}, out = [];
for (const [folder, what, ...given] of JSON.parse(asked)) {
  const student = students[folder] ??= await openStudent(`${address}/${folder}`, ...JSON.parse(whole));
  if (what === "ask") {
    const [head, relation, stopAt] = given, steps = [];
    const stop = new AbortController();
    try {
      for await (const found of student.ask(head, relation, { k: 11, signal: stop.signal })) {
        steps.push(found);
        if (steps.length === stopAt) stop.abort();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      steps.push(error.name);
    }
    out.push(steps);
  } else if (what === "known") out.push([...await student.known(...given)]);
  else out.push(await student[what](...given));
}
console.log(JSON.stringify(out));
"""


def run(server, queries, *whole):
    if shutil.which("node") is None:
        pytest.skip("node is not installed; tests/test_book.py compares the same in a browser")
    given = [MODULE.as_uri(), server.address, json.dumps(queries), json.dumps(whole)]
    return subprocess.run(
        ["node", "--input-type=module", "-e", SCRIPT, *given], capture_output=True, text=True, timeout=60, check=False
    )


def ask(server, queries, *whole):
    """What kge.mjs answers to queries (folder, what, ...); `whole`: bytes up to which a file is fetched at once."""
    done = run(server, queries, *whole)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same_answers(found, student, head, relation, exact):
    """The same entities in the same order, with the same scores: of codes bit for bit."""
    ours = student.predict(head=head, relation=relation, k=K, by="id", ids=True)
    if exact:
        assert found["ids"] == ours["id"]
        assert np.array_equal(np.float32(found["scores"]), np.float32(ours["score"]))
    else:
        np.testing.assert_allclose(found["scores"], ours["score"], rtol=1e-5, atol=1e-5)
        scores = dict(zip(ours["id"], ours["score"]))  # those that hardly differ may change places
        near = [scores.get(e, ours["score"][-1]) for e in found["ids"]]
        np.testing.assert_allclose(near, ours["score"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("name", [*MODELS, "LowRankComplEx", "LowRankReciprocal"])
def test_every_model_at_every_precision(name, norm, umls, tmp_path):
    queries, students = [(0, 0), (134, 45), (7, 3)], {}
    for precision in PRECISIONS:
        dim = 4 if kind_of(name).entity_factor == 2 else 12  # 12 floats in groups of 4: an odd number of groups
        low = {"rank": 8} if name.startswith("LowRank") else {}
        model = build_model(name, umls.num_entities, umls.num_relations, dim, seed=1, norm=norm, offset=3.1, **low)
        with torch.no_grad():
            model.entities.mul_(3)
        Labelled(model, umls).quantised(precision).save(tmp_path / precision)
        students[precision] = Labelled(model, umls).quantised(precision).student()
        if precision.endswith("bit") and not model.distance:
            keep_frequent(model, umls.train, 9)
            Labelled(model, umls).quantised(precision).save(tmp_path / f"some whole {precision}")
            students[f"some whole {precision}"] = Labelled(model, umls).quantised(precision).student()
    whole = nested(umls, name) if norm == 1 and name in ("ComplEx", "LowRankComplEx", "TransE") else None
    if whole is not None:  # one that is two sizes, and the smaller of them
        whole.save(tmp_path / "nested 8bit")
        students["nested 8bit"] = whole.student()
        students["nested 4bit"] = students["nested 8bit"].shorter(8)
        students["nested 4bit"].save(tmp_path / "nested 4bit")
    with Ranges(tmp_path) as server:
        asked = [(precision, "ask", *query) for precision in students for query in queries]
        answers = ask(server, asked, *([0] if norm == 1 else []))  # in parts, and at once
    for (precision, _, *query), steps in zip(asked, answers, strict=True):
        exact = precision.endswith("bit") and name in ("ComplEx", "DistMult", "SimplE", "TransE")
        exact &= not precision.startswith("some")
        exact &= not (name == "TransE" and precision.startswith("nested"))  # which is decoded
        assert steps[-1]["read"] == steps[-1]["of"]
        same_answers(steps[-1], students[precision], *query, exact)


@pytest.mark.parametrize("whole", [(), (0,)])
def test_labels_names_and_what_is_known(tiny_graph, tmp_path, whole):
    names = {"e00": "dog", "e01": "dog", "e02": "cat"}
    words = ("z z", *tiny_graph.entities[1:28], "ä_b", "\U0001f600")  # not in the order of their code points
    graph = dataclasses.replace(tiny_graph, entities=words, descriptions=names)
    Labelled(build_model("TransE", 30, 4, 2, seed=0), graph).save(tmp_path / "s")
    head, relation = tiny_graph.train[0, :2].tolist()
    asked = [
        *(
            ("s", "find", x)
            for x in ("dog", "cat", "e05", "z z", "ä b", "\U0001f600", "E05", "nothing", "", "cat (e02)")
        ),
        ("s", "title", 1),
        ("s", "title", 28),
        ("s", "suggest", "e1", 60),
        ("s", "suggest", "e1", 3),
        ("s", "known", head, relation),
        ("s", "known", head, (relation + 1) % 4),
    ]
    with Ranges(tmp_path) as server:
        *found, some, few, known, others = ask(server, asked, *whole)
    assert found == [[1], [2], [5], [0], [28], [29], [5], [], [], [2], "dog (e01)", "ä b"]
    assert some == list(range(10, 20)) and few == [10, 11, 12]
    for r, told in ((relation, known), ((relation + 1) % 4, others)):
        wanted = {}
        for split in ("test", "valid", "train"):
            rows = getattr(tiny_graph, split).tolist()
            wanted |= {t: split for h, rel, t in rows if (h, rel) == (head, r)}
        assert dict(told) == wanted


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return large_student(folder / "s"), folder


def test_a_large_student_is_asked_without_being_loaded_whole(large):
    student, folder = large
    with Ranges(folder) as server:
        label = student.entities[150_001]
        (found,) = ask(server, [("s", "find", label)], 0)
        assert found == [150_001] and server.sent["labels.bin"] < 40_000
        assert server.sent["weights.bin"] <= 2 * BLOCK  # of relations and codebook
        queries = [("s", "ask", 5, 1), ("s", "ask", 150_001, 0), ("s", "ask", 199_999, 2)]
        # In parts; from a server that knows no parts, or not always: relations, codebook, the head's block; at once.
        for whole, parts in (([0], math.inf), ([0], 0), ([0], 3), ([10**9], math.inf)):
            server.parts = parts
            server.sent.clear()
            stopped, *answers = ask(server, [("s", "ask", 5, 1, 3), *queries], *whole)  # after the third answer
            if whole == [0] and parts:
                assert stopped[-1] == "AbortError" and 0 < stopped[0]["read"] < stopped[0]["of"]
                assert len(stopped[0]["ids"]) == K and answers[0][0]["read"] >= stopped[2]["read"]
            for (_, _, *query), steps in zip(queries, answers, strict=True):
                same_answers(steps[-1], student, *query, exact=True)
                reads = [step["read"] for step in steps]
                assert reads == sorted(reads) and steps[-1]["read"] == steps[-1]["of"] == 3_200_000
            # what was read is kept, but for what was on its way when it stopped
            assert server.sent["weights.bin"] < 2.1 * 3_200_000 and len(answers[1]) == 1


def test_a_file_that_changed_is_one_line(large, tmp_path):
    _, folder = large
    shutil.copytree(folder / "s", tmp_path / "s")
    with (tmp_path / "s" / "weights.bin").open("ab") as file:
        file.write(b"more")
    (tmp_path / "s" / "labels.bin").write_bytes(b"less")
    with Ranges(tmp_path) as server:
        for query in (("s", "ask", 5, 0), ("s", "find", "Q0000001")):
            for parts in (math.inf, 0):
                server.parts = parts
                done = run(server, [query], 0)
                assert done.returncode and "is not the file that student.json describes" in done.stderr
    with Ranges(folder) as server:
        server.tags = itertools.chain(['"1"'] * 2, itertools.repeat('"2"'))  # after student.json, relations, codebook
        assert "was replaced meanwhile: load the page again" in run(server, [("s", "row", 5)], 0).stderr


@pytest.mark.parametrize(("name", "place"), [("weights.bin", 0), ("weights.bin", 2_000_000), ("weights.bin", -1)])
@pytest.mark.parametrize(("whole", "parts"), [(0, math.inf), (0, 0), (10**9, math.inf)])
def test_a_block_that_was_changed_is_one_line_and_no_answer(large, tmp_path, name, place, whole, parts):
    _, folder = large
    shutil.copytree(folder / "s", tmp_path / "s")
    content = bytearray((tmp_path / "s" / name).read_bytes())
    content[place] ^= 1
    (tmp_path / "s" / name).write_bytes(content)
    with Ranges(tmp_path) as server:
        server.parts = parts
        done = run(server, [("s", "ask", 150_001, 0)], whole)
    block = (place % len(content)) // BLOCK * BLOCK
    assert done.returncode and not done.stdout
    assert f"{name} is damaged, or is not the file that student.json describes (bytes {block} and on)" in done.stderr


def test_labels_that_are_fetched_whole_are_held_to_their_sums(tiny_graph, tmp_path):
    Labelled(build_model("TransE", 30, 4, 2, seed=0), tiny_graph).save(tmp_path / "s")
    path = tmp_path / "s" / "labels.bin"
    path.write_bytes(path.read_bytes().replace(b"e07", b"e70"))
    with Ranges(tmp_path) as server:
        assert "labels.bin is damaged" in run(server, [("s", "find", "e08")]).stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_sums_are_those_of_xxh3():
    sizes = [*range(260), 511, 512, 513, 1023, 1024, 1025, 1088, 1089, 2048, 2049, BLOCK - 1, BLOCK]
    script = f"""
const {{ xxh3 }} = await import({json.dumps(MODULE.with_name("xxh3.mjs").as_uri())});
const bytes = (n) => Uint8Array.from({{ length: n }}, (_, i) => i * i * 131 + i * 7 + n);
console.log(JSON.stringify({sizes}.map((n) => xxh3(bytes(n)))));
"""
    found = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    i = np.arange(BLOCK)
    wanted = [xxhash.xxh3_64_hexdigest((i[:n] * i[:n] * 131 + i[:n] * 7 + n).astype(np.uint8).tobytes()) for n in sizes]
    assert json.loads(found.stdout) == wanted


def test_a_folder_that_is_none_or_newer_is_one_line(tiny_graph, tmp_path):
    Labelled(build_model("TransE", 30, 4, 2), tiny_graph).save(tmp_path / "s")
    header = json.loads((tmp_path / "s" / "student.json").read_text())
    (tmp_path / "s" / "student.json").write_text(json.dumps({**header, "version": 4}))
    with Ranges(tmp_path) as server:
        assert "format 4, model TransE cannot be read here" in run(server, [("s", "title", 0)]).stderr
        assert "student.json: 404" in run(server, [("none", "title", 0)]).stderr


# ---- the page, in chromium ------------------------------------------------------------------------------------------
@pytest.fixture
def tab():
    """A page of chromium; its complaints fail the test."""
    path, complaints = (
        next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None),
        [],
    )
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with playwright() as found:
        chromium = found.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = chromium.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
        chromium.close()
    assert not complaints


def try_it(folder, entries):
    """The page with its form, beside the folders of students."""
    shutil.copytree(MODULE.parent, folder / "try", dirs_exist_ok=True)
    (folder / "try" / "graphs.json").write_text(json.dumps({"graphs": entries}))
    text = (records.root() / "book" / "try.md").read_text(encoding="utf-8")
    form = text[text.index('<div class="try">') : text.index("</script>")]
    (folder / "book").mkdir()
    (folder / "book" / "try.html").write_text(
        f"<!doctype html><meta charset=utf-8><link rel=icon href=data:,>{form}</script>", encoding="utf-8"
    )


def shown(tab):
    """Id, score, and what the data say, of each row."""
    return tab.eval_on_selector_all(
        "#try-answers tbody tr",
        "rows => rows.map(x => [Number(x.dataset.id), Number(x.dataset.score), x.cells[3].textContent])",
    )


def test_the_page_shows_answers_while_a_large_student_comes(large, tab, tmp_path):
    student, folder = large
    entry = {"title": "Large", "folder": "large", "student": True, "example": {"head": 5, "relation": 0}}
    try_it(tmp_path, [entry])
    (tmp_path / "try" / "large").mkdir()
    (tmp_path / "try" / "large" / "student").symlink_to(folder / "s")
    with Ranges(tmp_path) as server:
        server.gate.clear()  # the second half waits
        tab.goto(f"{server.address}/book/try.html")
        tab.wait_for_function("document.getElementById('try-status').textContent.includes('best so far')")
        assert " of 3.2 MB read" in tab.inner_text("#try-status") and len(shown(tab)) == 10
        tab.click("#try-stop")
        assert tab.inner_text("#try-status").startswith("Stopped. ") and not tab.is_visible("#try-stop")
        server.gate.set()
        for head in (5, 150_001):
            tab.fill("#try-head", student.entities[head])
            tab.click("#try-form button")
            tab.wait_for_selector(f'body[data-try-ready="large {head} 0"]')
            ours = student.predict(head=head, relation=0, by="id", ids=True)
            assert shown(tab) == [[e, pytest.approx(x, abs=1e-6), ""] for e, x in zip(ours["id"], ours["score"])]
        size = (folder / "s" / "labels.bin").stat().st_size
        assert server.sent["labels.bin"] < size / 20 and server.sent["weights.bin"] < 2 * 3_200_000
        tab.fill("#try-head", student.names[7])
        tab.click("#try-form button")
        tab.wait_for_selector('#try-head[aria-invalid="true"]')
        tab.wait_for_function("document.getElementById('try-status').textContent.startsWith('Several entities')")
        assert student.entities[7] in tab.inner_text("#try-status")


def test_the_page_shows_a_small_student_beside_its_teacher(umls, tab, tmp_path):
    entry = {"title": "UMLS", "folder": "umls", "student": True, "teacher": True, "example": {"head": 0, "relation": 0}}
    try_it(tmp_path, [entry])
    models = {"student": ("ComplEx", 8, "1bit"), "teacher": ("TransE", 16, "float32")}
    made = {}
    for role, (name, dim, precision) in models.items():
        model = build_model(name, umls.num_entities, umls.num_relations, dim, seed=3)
        made[role] = Labelled(model, umls).quantised(precision).student()
        made[role].save(tmp_path / "try" / "umls" / role)
    head, relation, _ = umls.test[0].tolist()
    split = {
        t: name
        for name in ("train", "valid", "test")
        for h, r, t in getattr(umls, name).tolist()
        if (h, r) == (head, relation)
    }
    with Ranges(tmp_path) as server:
        server.parts = 0
        tab.goto(f"{server.address}/book/try.html")
        tab.wait_for_selector('body[data-try-ready="umls 0 0"]')
        tab.fill("#try-head", umls.entities[head].replace("_", " "))
        tab.select_option("#try-relation", str(relation))
        tab.click("#try-form button")
        tab.wait_for_selector(f'body[data-try-ready="umls {head} {relation}"]')
        wanted = []
        for student in made.values():
            ours = student.predict(head=head, relation=relation, by="id", ids=True)
            wanted += [[e, pytest.approx(x, abs=1e-5), split.get(e, "")] for e, x in zip(ours["id"], ours["score"])]
        assert shown(tab) == wanted
