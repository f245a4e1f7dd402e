"""The built book in a real browser. An existing build is used when it was made from exactly these sources."""

from __future__ import annotations

import functools
import http.server
import itertools
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from book.build import sources
from book.build.site import build, workplace
from book.build.sources import SOURCES, digest, is_fresh
from book.build.try_it import few_bits
from kgdistil import load, predict, records
from kgdistil.compress.packing import quantised
from kgdistil.distillation import recipes

pytestmark = pytest.mark.book
pytest.importorskip("jupyter_book", reason="needs the extra book")
WIDTHS = {"desktop": 1280, "phone": 360}
# What one template makes, rows of a table and entries of the reference, axe reads the first of: it takes minutes else.
# What stands around every page, from the same template, it reads on the first.
MORE = (
    "tbody tr:nth-child(n+12), .indextable li:nth-child(n+12), "
    "section section ~ section ~ section ~ section ~ section dl.py"
)
AROUND = ".bd-sidebar-primary, .bd-header-article, .bd-footer, dialog"
LEFTOVERS = re.compile(
    r"<t[dh][^>]*>\s*(?:nan|NaN|None)\s*</t[dh]>|&lt;&lt; ?\w+\(|&lt;% "
)  # of a template, or of a gap


@pytest.fixture(scope="module")
def site() -> Path:
    """Its notebooks are shown as they are committed: nbval executes them."""
    return sources.site() if is_fresh(executed=False) else build(execute=False)


@pytest.fixture(scope="module")
def pages(site) -> list[Path]:
    """The book's own pages, relative to the site."""
    return [p.relative_to(site) for p in sorted(site.rglob("*.html")) if p.parent.name in ("book", "notebooks")]


class Links(HTMLParser):
    """What a page points to (href, src), what it loads, and the ids it has."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "img":
            self.images.append(found)
        for key in ("href", "src", "data", "action", "poster", "srcset"):
            if value := found.get(key):
                (self.links if tag == "a" else self.loaded).append(value)


def test_no_page_loads_anything_from_another_host(site):
    """Scripts, styles, fonts, images: of the pages, and what the styles import in turn."""
    foreign = {}
    for path in site.rglob("*.html"):
        loaded = [x for x in Links(path.read_text(encoding="utf-8")).loaded if re.match(r"(https?:)?//", x)]
        loaded = [x for x in loaded if not x.startswith("https://arxiv.org")]
        if loaded:
            foreign[str(path)] = loaded
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')]+)", text):
            foreign[str(path)] = found
    assert not foreign


def test_no_internal_link_is_broken(site):
    built = [p for p in site.rglob("*.html") if "_static" not in p.parts]  # there the theme keeps its templates
    parsed = {p: Links(p.read_text(encoding="utf-8")) for p in built}
    broken = []
    for path, page in parsed.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            lost = not target.is_file()
            if not lost and parts.fragment and target.suffix == ".html":
                lost = unquote(parts.fragment) not in parsed[target].ids
            if lost:
                broken.append((str(path.relative_to(site)), link))
    assert not broken


def test_every_picture_has_words_and_every_page_one_first_heading(site, pages):
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        assert all(image.get("alt") for image in Links(text).images), page
        article = text[text.index("<article") : text.index("</article>")]
        levels = [int(n) for n in re.findall(r"<h([1-6])[ >]", article)]
        assert levels[0] == 1 and levels.count(1) == 1, page
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), f"{page}: a heading level is left out"


def test_equations_carry_the_papers_numbers(site):
    text = (site / "book" / "method.html").read_text(encoding="utf-8")
    numbered = re.findall(r'id="equation-eq-(\d+)".*?class="formula-number">\((\d+)\)', text, re.DOTALL)
    assert numbered == [(str(i), str(i)) for i in range(1, 12)]


def test_pages_have_no_leftover_of_a_template(site, pages):
    for page in pages:
        text = (site / page).read_text(encoding="utf-8")
        assert not LEFTOVERS.findall(text), page


@pytest.mark.parametrize("text", ["<td>nan</td>", "<th scope='row'> None </th>", "&lt;&lt; table(", "&lt;% for"])
def test_a_leftover_is_found(text):
    assert LEFTOVERS.search(f"<tr>{text}</tr>") and not LEFTOVERS.search("<td>not run</td><em>None</em>")


def test_a_changed_source_makes_the_book_stale(site, tmp_path, monkeypatch):
    assert is_fresh(executed=False)
    stamp = tmp_path / "_build" / "html" / ".sources"
    stamp.parent.mkdir(parents=True)
    for name in SOURCES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("") if "." in name else (tmp_path / name).mkdir()
    monkeypatch.setattr(records, "root", lambda: tmp_path)
    stamp.write_text(digest(SOURCES))
    assert is_fresh() and is_fresh(executed=False)
    stamp.write_text(f"{sources.AS_COMMITTED} {digest(SOURCES)}")
    assert is_fresh(executed=False) and not is_fresh()
    (tmp_path / "results" / "new.csv").write_text("1")
    assert not is_fresh(executed=False)


# ---- in the browser -------------------------------------------------------------------------------------------------
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address):
    """Open pages at a width and in a colour scheme; what the console complains about is collected."""
    contexts, complaints = [], []

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # a page left before its icon came
            complaints.append(f"failed: {request.url}: {request.failure}")

    def open_at(page, width="desktop", scheme="light"):
        if not contexts:
            size = {"width": WIDTHS[width], "height": 900}
            contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
            tab = contexts[0].new_page()
            tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.on("requestfailed", failed)
            tab.on("request", lambda r: complaints.append(r.url) if not r.url.startswith((address, "data:")) else None)
        tab = contexts[0].pages[0]
        tab.goto(f"{address}/{page}", wait_until="load")
        return tab

    open_at.complaints = complaints
    yield open_at
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_quietly_fits_the_screen_and_can_be_read_by_all(open_page, pages, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    axe, found = Axe(), []
    for page in pages:
        tab = open_page(page, width, scheme)
        assert tab.evaluate("document.documentElement.dataset.theme") == scheme
        assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], f"{page} is too wide"
        if page.stem == "try":
            tab.wait_for_selector("#try-answers table")
        assert not open_page.complaints, page
        if (width, scheme) not in (("desktop", "light"), ("phone", "dark")):
            continue  # axe takes seconds a page: each width and each scheme once
        more = MORE if page == pages[0] else f"{MORE}, {AROUND}"
        tab.evaluate(f"document.querySelectorAll('{more}').forEach(each => each.remove())")
        for problem in axe.run(tab, options={"resultTypes": ["violations"]}).response["violations"]:
            if problem["impact"] in ("serious", "critical"):
                found += [f"{page}: {problem['id']}: {node['target']}" for node in problem["nodes"]]
        open_page.complaints.clear()  # axe reads the style sheets again, by addresses that need not exist
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["umls", "umls-16B"])
def test_try_it_answers_as_python_does(open_page, monkeypatch, folder):
    graph = load("umls")
    for name in ("RUNS", "RESULTS"):
        monkeypatch.setenv(f"KGDISTIL_{name}", str(workplace() / name.lower()))
    runs = recipes.distillation("umls").run(graph) if folder == "umls" else few_bits(graph)
    models = {"student": list(runs.values())[-1].load(graph), "teacher": runs["teacher"].load(graph)}
    if folder == "umls-16B":  # the page has the numbers of the file, whose codebook and relations are of halves
        models["student"] = quantised(models["student"], "1bit")
    tab = open_page("book/try.html")
    tab.wait_for_selector("#try-answers table")
    if folder != "umls":  # the first one is there already
        tab.select_option("#try-graph", "1")
    tab.wait_for_selector(f'body[data-try-ready^="{folder} "]')
    for h, r, _ in graph.test[[0, 100, 200]].tolist():
        tab.fill("#try-head", graph.entities[h])
        tab.select_option("#try-relation", str(r))
        tab.click("#try-form button")
        tab.wait_for_selector(f'body[data-try-ready="{folder} {h} {r}"]')
        for role, model in models.items():
            expected = predict(model, graph, head=h, relation=r, k=10, by="id")
            numbers = "rows => rows.map(x => [Number(x.dataset.id), Number(x.dataset.score)])"
            rows = tab.eval_on_selector_all(f'table[data-role="{role}"] tbody tr', numbers)
            assert len(rows) == 10
            for (entity, score), right in zip(rows, expected.itertuples(), strict=True):
                assert score == pytest.approx(right.score, abs=1e-4)
                assert graph.entities[entity] == right.entity
    assert not open_page.complaints


def test_try_it_says_when_there_is_no_such_entity(open_page):
    tab = open_page("book/try.html")
    tab.wait_for_selector("#try-answers table")
    tab.fill("#try-head", "no such thing")
    tab.click("#try-form button")
    tab.wait_for_selector('#try-head[aria-invalid="true"]')
    assert "no such thing" in tab.inner_text("#try-status")
