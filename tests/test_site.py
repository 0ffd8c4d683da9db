"""The site: its gallery is written from scripts and saved runs, and it works in Chromium."""

import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from pyro_ext.reproduction.pages import find_pages, run_page
from tests import pages as page_runs
from tests.test_docs import DOCS, PAGES, ROOT, name_of

PHONE, DESKTOP = (390, 844), (1280, 900)
SCRIPT = '''"""Numbers: what they are for."""

# %% [markdown]
# # Counting
#
# A. Author (2020) counts. See `other_page.py`.

# %%
import matplotlib
import matplotlib.pyplot as plt

from pyro_ext.reproduction import Page

page = Page("a-page", paper="A. Author (2020), Counting", reconstruction="its fingers are ours.")

# %% [markdown]
# ## One

# %%
figure, axes = plt.subplots()
axes.plot([1, 2], label="up")
axes.set(xlabel="$n$", ylabel="fingers", title="Counted")
axes.legend()
page.figure("a-figure", figure)
page.claim("One is | less than *two*.", 1.0, "<", 2, source="table 1")
page.claim("One is three.", 1.0, ">=", 3, source="table 2", reason="it is one", central=True)

# %%
print("counted")
page.finish()
'''


@pytest.fixture(scope="module")
def gallery_pages():
    pytest.importorskip("jupytext", reason="needs the extra 'docs'")
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("gallery_pages")
    sys.path.remove(str(DOCS))


@pytest.fixture
def small(tmp_path, monkeypatch, gallery_pages):
    """A gallery of one paper and one workflow, in a function that writes it."""
    scripts = tmp_path / "tutorials"
    (scripts / "papers").mkdir(parents=True)
    (scripts / "papers" / "a_page.py").write_text(SCRIPT)
    workflow = '"""A job."""\n\n# %% [markdown]\n# # Other\n\n# %%\nprint(1)\n'
    (scripts / "other_page.py").write_text(workflow)
    monkeypatch.setattr(gallery_pages, "WORKFLOWS", ("other-page",))
    monkeypatch.setattr(gallery_pages, "THEMES", {"Numbers": ("a-page",)})
    monkeypatch.setattr(page_runs, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(page_runs, "SAVED", tmp_path / "runs")
    monkeypatch.setattr(page_runs, "pages", lambda: tuple(find_pages(scripts / "papers")))

    def write():
        gallery_pages.write_gallery(scripts, tmp_path / "runs", tmp_path / "gallery")
        return {
            path.relative_to(tmp_path / "gallery").as_posix(): path
            for path in (tmp_path / "gallery").rglob("*.*")
        }

    return write


def cells_of(path):
    return json.loads(path.read_text("utf-8"))["cells"]


def save(monkeypatch, capsys, *slugs):
    monkeypatch.setattr("sys.argv", ["tests.pages", "--save", *slugs])
    page_runs.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_gallery_shows_what_a_saved_run_measured(small, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYRO_EXT_SMOKE", raising=False)
    (page,) = page_runs.pages()
    assert run_page(page, tmp_path / "reports", range(3), quiet=True).returncode == 1
    assert save(monkeypatch, capsys) == "a-page: saved: 1 of 2 claims hold\n"
    written = small()
    head, results, set_up, one, drawn, figure, counted = cells_of(written["papers/a_page.ipynb"])
    assert "".join(head["source"]).startswith("# Counting\n")
    assert "{doc}`other_page.py </gallery/other_page>`" in "".join(head["source"])
    results = "".join(results["source"])
    shown = 'A figure, a figure of Counting. Counted: fingers against n; for up"'
    assert results.index("a-figure.png") < results.index("| claim |") and shown in results
    assert (
        "| One is \\| less than \\*two\\*. [table 1]{.source} | one number \\< 2 | 1 |" in results
    )
    assert "[fails]{.fails}" in results and "[Fails: it is one.]{.reason}" in results
    assert "its fingers are ours" in results
    assert "reconstruction" in results and "CPU s" in results
    assert set_up["metadata"]["tags"] == ["hide-input"] and one["source"] == ["## One"]
    assert "a-figure.png" in "".join(figure["source"])
    assert set_up["outputs"] == drawn["outputs"] == []  # what is printed stands where it was
    assert counted["outputs"][0]["text"][0] == "counted\n"
    assert len(counted["outputs"][0]["text"]) > 5  # and the table of claims
    index = written["index.md"].read_text()
    assert index.index("Other") < index.index("Numbers") < index.index("Counting")
    assert "thumbnails/a-page.png" in index and "thumbnails/other-page.svg" in index
    assert "1 of 2 claims hold" in index and "not run in full for this release" in index
    board = written["scoreboard.md"].read_text()
    row = "One is three. | 1 (one number \\>= 3) | [fails]{.fails} | 1 of 2 claims hold |"
    assert f"| {{doc}}`a-page </gallery/papers/a_page>` | {row}" in board
    assert "| [fails]{.fails} | **Central:** One is three." in board
    plain = "".join("".join(cell["source"]) for cell in cells_of(written["notebooks/a_page.ipynb"]))
    assert "claims" not in plain and "a figure of" not in plain


@pytest.mark.slow
def test_gallery_says_which_runs_are_missing_or_old(small, tmp_path, monkeypatch, capsys):
    written = small()
    note = "".join(cells_of(written["papers/a_page.ipynb"])[1]["source"])
    assert "not run in full for this release" in note and "claim" not in note
    assert "a-page" in written["scoreboard.md"].read_text()
    (page,) = page_runs.pages()
    monkeypatch.setenv("PYRO_EXT_SMOKE", "1")
    run_page(page, tmp_path / "reports", range(3), quiet=True)
    assert "no saved run; the one in reports: ran shortly" in save(monkeypatch, capsys)
    monkeypatch.delenv("PYRO_EXT_SMOKE")
    run_page(page, tmp_path / "reports", range(3), quiet=True)
    save(monkeypatch, capsys)
    page.path.write_text(SCRIPT + "1 / 0\n")
    assert save(monkeypatch, capsys).strip().endswith("OLDER than its script")
    assert "The script has changed" in "".join(
        cells_of(small()["papers/a_page.ipynb"])[1]["source"]
    )
    page.path.write_text(SCRIPT.replace("page.finish()", "1 / 0"))
    run_page(page, tmp_path / "reports", range(3), quiet=True)
    with pytest.raises(SystemExit, match="not saved: a-page"):
        save(monkeypatch, capsys, "a-page")
    printed = capsys.readouterr().out
    assert "saved: 1 of 2 claims hold" in printed and "stopped with status 1" in printed


def test_gallery_has_a_place_for_each_page(small, gallery_pages, monkeypatch):
    small()
    monkeypatch.setattr(gallery_pages, "THEMES", {"Numbers": ("a-page", "gone")})
    with pytest.raises(ValueError, match=r"without a page: \['gone'\]"):
        small()


def test_gallery_is_written_again_where_it_has_changed(small, tmp_path):
    written = small()
    (tmp_path / "gallery" / "old.md").touch()
    before = {name: path.stat().st_mtime_ns for name, path in written.items()}
    after = small()
    assert before == {name: path.stat().st_mtime_ns for name, path in after.items()}


def test_saved_pictures_are_small_and_keep_their_words(tmp_path, monkeypatch):
    noise = Image.effect_noise((1600, 400), 60).convert("RGB")
    about = PngInfo()
    about.add_text("Description", "noise against time")
    noise.save(tmp_path / "noise.png", pnginfo=about)
    written = page_runs.small_picture(tmp_path / "noise.png", 20_000)
    (tmp_path / "small.png").write_bytes(written)
    assert len(written) <= 20_000
    with Image.open(tmp_path / "small.png") as image:
        assert image.info["Description"] == "noise against time"


def test_saved_runs_are_in_full_and_small(subtests):
    for folder in sorted(path for path in page_runs.SAVED.glob("*") if path.is_dir()):
        with subtests.test(folder.name):
            outcome = page_runs.kept_outcome(page_runs.page_named(folder.name), page_runs.SAVED)
            assert outcome.is_whole and not outcome.smoke
            sizes = [path.stat().st_size for path in folder.glob("*.png")]
            assert max(sizes, default=0) <= page_runs.PICTURE_BYTES
            assert sum(sizes) <= page_runs.PAGE_BYTES
            for path in folder.glob("*.[jt][sx]*"):
                assert not re.search(r"(?:^|[\s\"'(=])/\w+/", path.read_text("utf-8")), path


def test_formulas_are_written_for_browsers(gallery_pages):
    nodes = pytest.importorskip("docutils.nodes")
    mathml = importlib.import_module("mathml")  # the fixture makes its folder known
    written = mathml.to_mathml(None, r"n_1, \dots, n_k \Big/ 2", as_block=False)
    assert written.startswith("<math") and "…" in written
    written = mathml.to_mathml(None, r"\hat\mu_{\tilde x_i}^2 < \sum_i^n ~\, \bar x", False)
    tags = re.findall(r"<(m(?:sub|sup|over|underover|under))\b", written)
    assert tags == ["msup", "msub", "mover", "msub", "mover", "munderover", "mover"]
    translator = SimpleNamespace(body=[])
    for text in (r"a = \frac12", "a &= 1\n\nb &= 2"):
        with pytest.raises(nodes.SkipNode):
            mathml.visit_displaymath(translator, nodes.math_block("", text))
    assert [text.count("<mtr>") for text in translator.body] == [0, 2]


@pytest.mark.slow
def test_site_builds_and_works_in_chromium(tmp_path, subtests, request):
    """Built once, without warnings: links, pictures, widths, search, colors, and the gallery."""
    pytest.importorskip("myst_nb", reason="needs the extra 'docs'")
    html = build(tmp_path)
    for page in PAGES:
        assert (html / name_of(page)).with_suffix(".html").exists()
    for page in page_runs.pages():
        place = "papers/" if page.path.parent == page_runs.PAPERS else ""
        assert (html / "gallery" / f"{place}{page.path.stem}.html").exists()
    with subtests.test("links and pictures"):
        check_links_and_pictures(html)
    browser = request.getfixturevalue("browser")  # skips what is left where there is none
    with served(html) as address:
        for path in sorted(html.rglob("*.html")):
            name = path.relative_to(html).as_posix()
            with subtests.test(name):
                check_widths_and_console(browser, f"{address}/{name}")
        with subtests.test("gallery"):
            check_gallery(browser, f"{address}/gallery/index.html")
        with subtests.test("dark and light"):
            check_colors(browser, f"{address}/gallery/scoreboard.html")
        with subtests.test("search"):
            for start in (address, html.as_uri()):
                check_search(browser, f"{start}/search.html?q=AutoPseudocoreset")
    browser.get_log("browser")


def build(folder):
    """The site of the present sources, without the pages that show the source."""
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("_build", "gallery"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-t", "without_source"]
    result = subprocess.run(
        [*command, str(folder / "docs"), str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / "html"


class Document(HTMLParser):
    """What a page links to, what can be linked to in it, and its pictures."""

    def __init__(self, path):
        super().__init__()
        self.links, self.names, self.pictures = [], set(), []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.names |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [values[key] for key in ("href", "src") if values.get(key)]
        if tag == "img":
            self.pictures.append((values.get("src"), values.get("alt")))


def check_links_and_pictures(html):
    """No link within the site is broken, and each picture has a text in its place."""
    documents = {path: Document(path) for path in html.rglob("*.html")}
    assert len(documents) > 100
    broken = []
    for path, document in documents.items():
        for link in document.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            names = documents[target].names if target in documents else {parts.fragment}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in names):
                broken.append((path.relative_to(html).as_posix(), link))
        broken += [(path.name, source) for source, text in document.pictures if not text]
    assert not broken


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(html):
    """The address of the site on this machine."""
    handler = partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
BROKEN = (
    "return [...document.images].filter((image) => image.complete && !image.naturalWidth)"
    ".map((image) => image.src)"
)


def check_widths_and_console(browser, address):
    """The page does not scroll sideways, no picture is broken, and the console stays empty."""
    browser.get(address)
    for width, height in (PHONE, DESKTOP):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert browser.execute_script(WIDER) <= 0, width
    assert browser.execute_script(BROKEN) == []
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def check_gallery(browser, address):
    """There is a card for each page, and what one writes leaves those that contain it."""
    browser.get(address)
    cards = browser.find_elements(By.CSS_SELECTOR, ".gallery-cards .sd-card")
    assert len(cards) == len(page_runs.pages())
    browser.find_element(By.CSS_SELECTOR, ".gallery-filter").send_keys("tree clustering")
    shown = [card.text for card in cards if card.is_displayed()]
    assert 0 < len(shown) < 5 and any("Relaxed Bayesian" in text for text in shown)


def check_colors(browser, address):
    """The button changes between dark and light."""
    light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
    browser.get(address)
    background = "return getComputedStyle(document.body).backgroundColor"
    seen = {browser.execute_script(background)}
    for _ in range(3):  # by itself, then the two that one can choose
        browser.execute_script("document.querySelector('.theme-toggle').click()")
        seen.add(browser.execute_script(background))
    assert {sum(map(int, re.findall(r"\d+", color)[:3])) < 200 for color in seen} == {True, False}


def check_search(browser, address):
    """It finds a known name, also without a server."""
    find = "return [...document.querySelectorAll('#search-results li a')].map((a) => a.textContent)"
    browser.get(address)
    WebDriverWait(browser, 120, 0.1).until(lambda _: browser.execute_script(find))
    assert any("pseudocoreset" in title.lower() for title in browser.execute_script(find))
