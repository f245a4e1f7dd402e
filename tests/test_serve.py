"""`kgdistil serve`: what it answers, what it refuses, how it starts and stops."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torch
import uvicorn
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from starlette.testclient import TestClient

from kgdistil import load_student
from kgdistil.answer.student import Student
from kgdistil.cli import main
from kgdistil.errors import ConfigError
from kgdistil.graph import Graph
from kgdistil.models import build_model
from kgdistil.serve import app as serving
from kgdistil.serve import run
from kgdistil.serve.app import Limits, application
from kgdistil.students.calibration import calibrate
from kgdistil.students.labelled import Labelled

LIMITS = Limits(k=20, batch=4, body=2000, hosts=("testserver",))


@pytest.fixture(scope="module")
def folder(tiny_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of coded entities, some of whose labels a URL or JSON has to escape, with readable names."""
    labels = ("a b", "c&d=e", 'f"g\\', "é/ü?", *tiny_graph.entities[4:])
    names = {"e04": "Ada, the first", "e05": "Bea", "e06": "Ada, the second"}
    train, valid = tiny_graph.train, torch.cat([tiny_graph.train[140:], tiny_graph.valid])  # enough to calibrate
    graph = dataclasses.replace(
        tiny_graph, entities=labels, descriptions=names, train=train[:140], valid=valid, sha256="1" * 64
    )
    to = tmp_path_factory.mktemp("serve") / "student"
    Labelled(build_model("ComplEx", 30, 4, 8, seed=1), graph).quantised("1bit").save(to)
    calibrate(to)
    return to


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return load_student(folder)


@pytest.fixture(scope="module")
def client(student: Student) -> TestClient:
    return TestClient(application(student, LIMITS), raise_server_exceptions=False)


def error(answer: Any, status: int) -> str:
    """The one line of a refusal."""
    assert answer.status_code == status and answer.headers["content-type"] == "application/json", answer.text
    told = answer.json()
    assert list(told) == ["error"] and "\n" not in told["error"] and len(told["error"]) > 10
    return told["error"]


# ---- answers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "query",
    [
        {"head": "a b", "relation": "r1", "k": 3},
        {"relation": "r1", "tail": "c&d=e", "new": True, "unseen": True},
        {"head": 'f"g\\', "tail": "é/ü?"},
        {"head": "Bea", "relation": "r2", "typed": True, "probability": True},
        {"relation": "r2", "tail": "e09", "coverage": 0.5, "k": 20},
        {"head": 3, "relation": 1, "by": "id", "candidates": [4, 5, 6]},
        {"head": "a b", "relation": "r1", "candidates": ["e07"]},
    ],
)
def test_a_query_is_answered_as_from_python(client: TestClient, student: Student, query: dict[str, Any]) -> None:
    wanted = student.predict(ids=True, **query).rows()
    assert wanted
    got = client.get("/predict", params=query)
    assert got.status_code == 200 and got.json() == wanted, got.text
    assert client.post("/predict", json=query).json() == wanted


def test_a_batch_is_answered_as_from_python(client: TestClient, student: Student) -> None:
    query = {"head": ["a b", "e07", "Bea"], "relation": "r0", "k": 2}
    assert client.post("/predict", json=query).json() == student.predict(ids=True, **query).rows()
    for how in ({}, {"typed": True}, {"candidates": []}):
        assert client.post("/predict", json={"head": [], "relation": "r0", **how}).json() == []


def test_an_answer_set_has_as_many_answers_as_one_request_may(student: Student, client: TestClient) -> None:
    asked = {"head": "e07", "relation": "r1", "coverage": 0.9}
    wanted = student.predict(ids=True, k=20, **asked).rows()
    assert client.get("/predict", params=asked).json() == wanted
    assert error(client.get("/predict", params=asked | {"coverage": 1}), 422).startswith("coverage: ")


def test_sets_that_are_cut_are_counted_in_a_header(student: Student, client: TestClient) -> None:
    asked = {"head": ["e07", "é/ü?"], "relation": "r1", "coverage": 0.9}
    sizes = [len(student.predict(head=head, relation="r1", coverage=0.9)) for head in asked["head"]]
    cut = sum(size > 20 for size in sizes)
    assert cut and student.predict(**asked, k=20).cut == cut and student.predict(**asked).cut == 0
    assert client.post("/predict", json=asked).headers["Cut-Sets"] == str(cut)
    assert "Cut-Sets" not in client.post("/predict", json=asked | {"coverage": 0.01}).headers
    methods = client.get("/openapi.json").json()["paths"]["/predict"]
    assert all("Cut-Sets" in methods[method]["responses"]["200"]["headers"] for method in ("get", "post"))
    assert client.get("/docs").text.count("Cut-Sets") == 2


def test_a_server_of_few_answers_gives_as_many_where_nobody_says(student: Student) -> None:
    with TestClient(application(student, Limits(k=5)), base_url="http://localhost") as few:
        assert len(few.get("/predict", params={"head": "e07", "relation": "r1"}).json()) == 5
        assert len(few.get("/similar", params={"entity": "e07"}).json()) == 5
        assert len(few.get("/labels", params={"prefix": "e"}).json()) == 5
        assert error(few.get("/predict", params={"head": "e07", "relation": "r1", "k": 6}), 422).startswith("k is 6;")


def test_the_shell_says_the_same(client: TestClient, folder: Path) -> None:
    asked = ["predict", str(folder), "--head", "é/ü?", "--relation", "r1", "--json", "-k", "4"]
    shell = json.loads(CliRunner().invoke(main, asked).stdout)
    assert client.get("/predict", params={"head": "é/ü?", "relation": "r1", "k": 4}).json() == shell
    shell = json.loads(CliRunner().invoke(main, ["similar", str(folder), "a b", "--json", "-k", "4"]).stdout)
    assert client.get("/similar", params={"entity": "a b", "k": 4}).json() == shell


def test_a_student_says_what_it_is_and_begins_with_an_example(client: TestClient, student: Student) -> None:
    about = client.get("/student").json()
    assert about["entities"] == 30 and about["model"] == "ComplEx" and about["card"] == student.card()
    assert about["limits"] == {"k": 20, "batch": 4, "body": 2000}
    assert client.get("/predict", params=about["example"]).status_code == 200
    assert client.get("/health").json() == {"status": "ok"} and client.head("/health").content == b""


def test_labels_are_completed_by_label_and_by_name(client: TestClient) -> None:
    found = lambda **asked: [row["label"] for row in client.get("/labels", params=asked).json()]
    assert found(prefix="e1", k=3) == ["e10", "e11", "e12"]
    assert found(prefix="Ada") == ["e04", "e06"] and found(prefix="x") == []
    assert found(kind="relation") == ["r0", "r1", "r2", "r3"]


def test_large_questions_are_answered_in_threads(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "AT_ONCE", 0)
    seen, predict = [], student.predict
    monkeypatch.setattr(student, "predict", lambda **x: seen.append(threading.current_thread()) or predict(**x))
    with TestClient(application(student)) as client:
        asked = {"head": "a b", "relation": "r1"}
        assert client.get("/predict", params=asked).json() == predict(ids=True, **asked).rows()
        loop = client.portal.call(threading.current_thread)
        assert seen != [loop]
        monkeypatch.setattr(serving, "WAITING", 0)
        full = client.get("/predict", params=asked)
        assert "second" in error(full, 503) and full.headers["retry-after"] == "1"


def test_what_json_cannot_hold_is_escaped_or_null() -> None:
    assert json.loads(serving.dump({"label": "\ud800", "score": float("nan")})) == {"label": "\ud800", "score": None}
    assert json.loads(serving.dump(["\ud800é"])) == ["\ud800é"]


# ---- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"head": "a b"}, "exactly two"),
        ({"head": "e111", "relation": "r1"}, "did you mean"),
        ({"head": "Ada", "relation": "r1"}, "several"),
        ({"head": "a b", "relation": "r1", "k": 0}, "k: "),
        ({"head": "a b", "relation": "r1", "k": 21}, "up to 20"),
        ({"head": "a b", "relation": "r1", "k": "9" * 5000}, "k: "),
        ({"head": "a b", "relation": "r1", "kk": 5}, "kk: "),
        ({"head": ["a b", "e07"], "relation": "r1"}, "2 times"),
        ({"head": "x", "relation": "r1", "by": "id"}, "ids go from 0 to 29"),
        ({"head": "-1", "relation": "1", "by": "id"}, "ids go from 0 to 29"),
        ({"head": "a b", "relation": "r1", "new": "perhaps"}, "new: "),
    ],
)
def test_a_wrong_query_is_one_line(client: TestClient, asked: dict[str, Any], word: str) -> None:
    assert word in error(client.get("/predict", params=asked), 422)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 422, "json"),
        (b"[1]", 422, "the request"),
        (b'{"head": "a b"', 422, "json"),
        (b'{"head": "a b", "relation": "r1", "k": "5"}', 422, "k: "),
        (b'{"head": "\\ud800", "relation": "r1"}', 422, "json"),
        (b'{"head": "a b", "relation": "r1", "head": "e07"}', 422, "head is given 2 times; give it once"),
        (b"[" * 1900, 422, ""),
        (b'{"head": ["a b", "e07", "e08", "e09", "e10"], "relation": "r1"}', 422, "up to 4"),
        (b'{"head": ["a b", "e07"], "relation": ["r1"]}', 422, "different lengths"),
        (b'{"head": 1e400, "relation": "r1"}', 422, "head: "),
        (b'{"head": 1' + b"0" * 1500 + b', "relation": "r1"}', 422, ""),
        (b" " * 2001, 413, "2,000"),
    ],
)
def test_a_wrong_body_is_one_line(client: TestClient, body: bytes, status: int, word: str) -> None:
    json_ = {"content-type": "application/json"}
    assert word in error(client.post("/predict", content=body, headers=json_), status).lower()
    assert word in error(client.post("/predict", content=iter([body[:9], body[9:]]), headers=json_), status).lower()


def test_answers_and_bitmaps_of_one_request_are_bounded(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(application(student))
    monkeypatch.setattr(serving, "ROWS", 1500)
    batch = {"head": ["a b", "e07"], "relation": "r1", "k": 1000}
    assert "1,500 answers" in error(client.post("/predict", json=batch), 422)
    monkeypatch.setattr(serving, "BITS", 5)  # 40 bits: one query of 30 entities
    batch |= {"k": 5, "typed": True}
    assert "1 at a time" in error(client.post("/predict", json=batch), 422)
    assert client.post("/predict", json=batch | {"head": "a b"}).status_code == 200


def test_other_addresses_methods_and_forms_are_refused_in_json(client: TestClient) -> None:
    error(client.get("/nothing"), 404)
    assert "GET" in (found := client.delete("/predict")).headers["allow"] and error(found, 405)
    error(client.post("/predict", data={"head": "a b"}), 415)
    assert error(client.get("/labels", params={"kind": "x"}), 422).startswith("kind: ")


def test_it_goes_by_its_own_name_only(student: Student, client: TestClient) -> None:
    """A page of another site that calls this machine by a name of its own (DNS rebinding) is not answered."""
    for host in ("evil.example", "evil.example:80", "", "testserver.evil.example", "a:b:c"):
        error(client.get("/health", headers={"host": host}), 400)
    assert client.get("/health", headers={"host": "TestServer:8000"}).status_code == 200
    anyone = TestClient(application(student, Limits()))
    assert anyone.get("/health", headers={"host": "any.example"}).status_code == 200
    assert "access-control-allow-origin" not in anyone.get("/health", headers={"origin": "http://x.example"}).headers


def test_a_file_that_shrank_is_no_crash(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgdistil.answer.format.SMALL", 0)  # larger files are mapped
    copy = shutil.copytree(folder, tmp_path / "copy")
    client = TestClient(application(load_student(copy)))
    assert client.get("/health").status_code == 200
    os.truncate(copy / "weights.bin", 10)
    for path in ("/health", "/predict?head=e07&relation=r1", "/similar?entity=e07"):
        assert "has shrunk" in error(client.get(path), 503)


def test_a_fault_of_the_server_shows_no_traceback(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "predict", lambda **_: 1 / 0)
    client = TestClient(application(student), raise_server_exceptions=False)
    assert "log" in error(client.get("/predict?head=e07&relation=r1"), 500)


# ---- its description ------------------------------------------------------------------------------------------------
def test_the_description_lists_every_route(client: TestClient, student: Student) -> None:
    told = client.get("/openapi.json").json()
    there = {(route.path, method) for route in application(student).routes for method in route.methods - {"HEAD"}}
    assert {(path, m.upper()) for path, methods in told["paths"].items() for m in methods} == there
    docs = client.get("/docs").text
    assert all(path in docs for path in told["paths"]) and "http" not in re.sub(r"http-equiv", "", docs)
    post = told["components"]["schemas"]["Batch"]["properties"]
    assert post["k"]["anyOf"][0]["maximum"] == 20 and [x.get("maxItems") for x in post["head"]["anyOf"]].count(4) == 1


def test_hundreds_of_requests_right_and_wrong_are_never_an_error_of_the_server(client: TestClient) -> None:
    """Schemathesis makes them of the description, which is valid; each answer is one that the description names."""
    checks.load_all_checks()
    names = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
    kept = [checks.CHECKS.get_one(name) for name in names]
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.app = client.app
    schema.validate()
    asked = []

    for operation in (found.ok() for found in schema.get_all_operations()):

        @given(case=operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        @settings(max_examples=60, derandomize=True, deadline=None, database=None)
        def ask(case: Any) -> None:
            answer = case.call(base_url="http://testserver")
            case.validate_response(answer, checks=kept)
            asked.append(answer.status_code)

        ask()
    assert len(asked) > 200 and {200, 422} <= set(asked) and 500 not in asked


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists).map(repr))
@settings(max_examples=150, deadline=None)
def test_any_body_is_answered_or_refused(client: TestClient, body: Any) -> None:
    sent = body if isinstance(body, bytes) else f'{{"head": {body}, "relation": "r1"}}'.encode("utf-8", "replace")
    answer = client.post("/predict", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 413, 422)


# ---- the process ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`kgdistil serve` in a process of its own, and its address."""
    command = [sys.executable, "-m", "kgdistil.cli", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = ""
        while "http" not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
        yield process, line.split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_server_starts_answers_and_stops(folder: Path, student: Student, stop: signal.Signals) -> None:
    with served(folder, "--workers", "2" if stop == signal.SIGTERM else "1") as (process, address):
        asked = f"{address}/predict?head=e07&relation=r1"
        with urllib.request.urlopen(asked, timeout=60) as answer:  # the port is open before a worker is ready
            assert json.load(answer) == student.predict(head="e07", relation="r1", ids=True).rows()
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), err


def test_a_folder_without_a_student_and_a_port_that_is_taken_are_one_line(folder: Path, tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert missing.exit_code == 1 and len(missing.output.splitlines()) == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = CliRunner().invoke(main, ["serve", str(folder), "--port", port])
    assert refused.exit_code == 1 and port in refused.output and "--port" in refused.output
    with pytest.raises(ConfigError, match="--host"):
        run.listen("no.such.host.invalid", 0)
    with pytest.raises(ConfigError, match=r"cannot listen at port 0 of foo\.\.bar: .*--host"):
        run.listen("foo..bar", 0)


def test_without_the_extra_it_says_what_to_install(folder: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from kgdistil.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and 'pip install "kgdistil[serve]"' in done.stderr


def test_it_needs_neither_torch_nor_pandas(folder: Path) -> None:
    code = "import sys; from kgdistil.serve.run import make, Limits; make(sys.argv[1], Limits()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "scipy", "safetensors"} & set(done.stdout.split())


@pytest.fixture
def patient(student: Student, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[tuple[str, int], uvicorn.Server]]:
    """The address, and the server, of one in a thread whose patience is short."""
    monkeypatch.setattr(run, "SECONDS", 0.2)
    with run.listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(
            application(student, LIMITS),
            http=run.Patient,
            lifespan="off",
            log_config=None,
            h11_max_incomplete_event_size=run.HEADERS,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname(), server
        server.should_exit = True
        thread.join()


def said(address: tuple[str, int], text: bytes) -> bytes:
    """All that a server says to a text before it ends the connection."""
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(text)
        with contextlib.suppress(ConnectionResetError):
            return b"".join(iter(lambda: client.recv(1 << 16), b""))
    return b""


def json_of(told: bytes, status: int) -> str:
    """The line of a refusal, which is the only one on its connection."""
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"application/json" in head, told[:200]
    assert b"connection: close" in head.lower()
    return json.loads(body)["error"]


def test_beyond_the_most_connections_a_refusal_is_as_all_others(
    patient: tuple[tuple[str, int], uvicorn.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: testserver\r\n\r\n"
    monkeypatch.setattr(run, "SECONDS", 60)
    monkeypatch.setattr(run, "CONNECTIONS", 2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(patient[0], timeout=30))
            client.sendall(whole)
            assert b" 200 " in client.recv(1000)
        told = said(patient[0], whole)
        assert "too many are connected" in json_of(told, 503) and b"retry-after: 1" in told.lower()


def test_who_is_slow_or_says_too_much_is_not_waited_for(patient: tuple[tuple[str, int], uvicorn.Server]) -> None:
    address = patient[0]
    assert said(address, b"") == said(address, b"GET /health HTTP/1.1\r\nHost: testser") == b""
    whole = b"GET /health HTTP/1.1\r\nHost: testserver\r\n\r\n"
    assert said(address, whole).count(b"200 OK") == 1 and said(address, whole * 3).count(b"200 OK") == 3
    assert json_of(said(address, b"GET /health HTTP/1.1\r\nX: " + b"x" * (run.HEADERS + 9000)), 400)
    assert json_of(said(address, b"\x16\x03\x01 no HTTP\r\n\r\n"), 400)
    for long in (b"GET /health HTTP/1.1\r\nX: %b" % (b"x" * 50_000), b"GET /health?%b HTTP/1.1" % (b"x" * 50_000)):
        assert "16,384 bytes" in json_of(said(address, long + b"\r\nHost: testserver\r\n\r\n"), 431)
    assert b" 413 " in said(
        address,
        b"POST /predict HTTP/1.1\r\nHost: testserver\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99999\r\n\r\n",
    )


def test_an_answer_leaves_at_once(
    patient: tuple[tuple[str, int], uvicorn.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its second part waits until the client has acknowledged the first, 40 ms on Linux."""
    address, server = patient
    monkeypatch.setattr(run, "SECONDS", 60)
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: testserver\r\n\r\n")
        assert client.recv(1000)
        (connection,) = server.server_state.connections
        sent_by = connection.transport.get_extra_info("socket")
        assert sent_by.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ---- the page -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.book
def test_the_page_asks_the_server_fits_a_phone_and_can_be_read_by_all(
    browser: Any, folder: Path, student: Student
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with served(folder) as (_, address):
        tab = browser.new_page(viewport={"width": 360, "height": 740})
        complaints: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((address, "data:")) else None)
        tab.goto(address)
        tab.wait_for_selector("body[data-ready]")  # the example
        assert tab.locator("tbody tr").count() == 10
        tab.fill("#head", "Ada")
        tab.wait_for_selector("#heads option[value=e06]", state="attached")
        assert tab.locator("#heads option").evaluate_all("found => found.map((x) => x.value)") == ["e04", "e06"]
        tab.fill("#head", "e04"), tab.fill("#relation", "r1"), tab.fill("#k", "3"), tab.check("#new")
        tab.click("button")
        tab.wait_for_selector("tbody tr:nth-child(3):last-child")
        wanted = student.predict(head="e04", relation="r1", k=3, new=True)
        assert tab.locator("tbody td:nth-child(2)").all_inner_texts() == wanted["name"]
        tab.fill("#head", "e05")
        tab.fill("#tail", "e06")
        tab.click("button")
        assert "Give two" in tab.inner_text("#status") and complaints == []
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for page in ("", "docs"):
            tab.goto(f"{address}/{page}")
            assert Axe().run(tab).response["violations"] == []
        tab.close()


def test_a_post_is_asked_in_its_body_alone(client: TestClient) -> None:
    """What stands in the address would be silently left out."""
    query = {"head": "a b", "relation": "r 0"}
    assert "'k' stands in the address" in error(client.post("/predict?k=1&foo=2", json=query), 422)
    assert client.options("/predict").headers["allow"].replace(" ", "").split(",").count("POST") == 1
    told = client.get("/openapi.json").json()["components"]["schemas"]
    bounds = [x for s in told.values() for x in s.get("properties", {}).get("coverage", {}).get("anyOf", [])]
    assert {x["maximum"] for x in bounds if "maximum" in x} == {0.99} and not any(
        "exclusiveMaximum" in x for x in bounds
    )
