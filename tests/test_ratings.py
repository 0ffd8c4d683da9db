"""Pages to rate images on, and files of ratings: what they hold, and what is refused."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pyro_ext.ratings
from pyro_ext.cli.commands import app
from pyro_ext.ratings import FILE_NAME, add_ratings, rating_page, read_ratings

WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}
NAMES = ("a.png", "b.JPG", "c d.webp", "ü<script>.png", "e.gif", "f.png", "g.png")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "below.png").mkdir()
    (tmp_path / "secret.png").write_text("secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def content_of(page):
    """What a page says that its script shows."""
    (line,) = re.findall(r"^const DATA = (.*);$", page, re.MULTILINE)
    return json.loads(line)


def save(path, answers, **header):
    """Write a file as a page saves it."""
    header = {"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1} | header
    lines = [header, *answers]
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def label(name, value):
    return {"images": [name], "label": value, "time": "2026-12-01T00:00:00.000Z"}


def test_a_page_holds_the_images_in_an_order_of_the_seed(folder):
    page = rating_page(folder, concept="seven</script>", seed=1)
    content = content_of(page)
    assert content["concept"] == "seven</script>" and content["rank"] == 1
    assert page.count("</script>") == 1, "no name ends the script"
    urls = {image["name"]: image["url"] for image in content["images"]}
    assert sorted(urls) == sorted(NAMES)
    assert urls["b.JPG"].startswith("data:image/jpeg;base64,Yi5KUEc=")
    assert rating_page(folder, concept="seven</script>", seed=1) == page
    (folder / "a.png").write_bytes(b"another")  # whose answers the browser has not kept
    assert (
        content_of(rating_page(folder, concept="seven</script>", seed=1))["key"] != content["key"]
    )
    other = content_of(rating_page(folder, concept="seven", seed=2))
    assert [image["name"] for image in other["images"]] != list(urls)
    assert not re.search(r"https?://", page.split("const DATA")[0]), "works without a network"


def test_answers_are_added_and_not_asked_for_again(folder, tmp_path):
    answers = save(tmp_path / "1", [label("a.png", True), {"images": ["e.gif"], "skipped": True}])
    found = add_ratings(folder, answers)
    assert found == read_ratings(folder) == read_ratings(folder / FILE_NAME)
    assert found.labels == {"a.png": True} and found.skipped == ["e.gif"]
    content = content_of(rating_page(folder))
    left = [image["name"] for image in content["images"]]
    assert content["concept"] == "seven" and sorted(left) == sorted({*NAMES} - {"a.png", "e.gif"})
    more = [label("a.png", False), label("e.gif", True), *(label(name, True) for name in left)]
    found = add_ratings(folder, save(tmp_path / "2", more))
    assert found.labels["a.png"] is False and not found.skipped and found.names() == {*NAMES}
    with pytest.raises(ValueError, match="at least 1 images .* without an answer, got 0"):
        rating_page(folder)


def test_rankings(folder, tmp_path):
    ranked = [{"images": list(NAMES[:3]), "ranking": list(NAMES[2::-1])}]
    found = add_ratings(folder, save(tmp_path / "r", ranked, rank=3))
    assert found.rankings == [list(NAMES[2::-1])] and found.rank == 3
    assert len(content_of(rating_page(folder, rank=3))["images"]) == 4
    with pytest.raises(ValueError, match="rank must be 3, as in the existing ratings"):
        rating_page(folder, rank=2)
    with pytest.raises(ValueError, match="concept must be 'seven', as in the existing ratings"):
        add_ratings(folder, save(tmp_path / "o", ranked, rank=3, concept="old"))


def test_files_of_earlier_releases(folder):
    save(folder / FILE_NAME, [label("a.png", True), {"undo": True}, label("f.png", False)])
    assert read_ratings(folder).labels == {"f.png": False}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "path must be a file of ratings saved by a page"),
        ("nonsense\n", "path must be a file of ratings saved by a page"),
        (None, "path must be a file of ratings saved by a page"),
        ([{"images": ["a.png"]}], "line 2 of .* is not a rating"),
        ([{"images": "a.png", "label": True}], "line 2 of .* is not a rating"),
        ([{"images": ["a.png"], "label": 1}], "line 2 of .* is not a rating"),
        ([{"images": ["a.png", "f.png"], "ranking": ["a.png"]}], "line 2 of .* is not a rating"),
        ([label("a.png", True), {"undo": True}, {"undo": True}], "line 4 of .* is not a rating"),
        ([label("gone.png", True)], "about images of the folder, but 'gone.png' is not there"),
        ([label("link.png", True)], "about images of the folder, but 'link.png' is not there"),
    ],
)
def test_files_of_something_else(folder, tmp_path, content, words):
    path = tmp_path / "file"
    if content is None:
        save(path, [], version=2)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        save(path, content)
    with pytest.raises(ValueError, match=words):
        add_ratings(folder, path)
    assert not (folder / FILE_NAME).exists()


def test_too_few_images(folder):
    with pytest.raises(ValueError, match="at least 8 images"):
        rating_page(folder, rank=8)


def test_images_that_are_too_large(folder, monkeypatch):
    monkeypatch.setattr(pyro_ext.ratings, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="make them smaller"):
        rating_page(folder)


def test_the_command(folder, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["rate", "--no-open", *map(str, arguments)], env=WIDE)

    result = run(folder, "--concept", "seven")
    assert result.exit_code == 0 and str(folder / "rate.html") in result.output
    page = (folder / "rate.html").read_text("utf-8")
    assert page == rating_page(folder, concept="seven")
    answers = save(tmp_path / "answers", [label("a.png", True)])
    result = run(folder, "--answers", answers)
    assert "1 images rated, 0 of them skipped" in result.output
    for arguments, words in {
        (tmp_path / "none",): "folder must be a folder of images",
        (folder, "--rank", 13): "--rank",
        (folder, "--concept", "old"): "concept must be 'seven'",
        (folder, "--answers", tmp_path / "gone"): "gone cannot be used: No such file",
        (folder, "--page", tmp_path / "no" / "p.html"): "cannot be used: No such file",
    }.items():
        result = run(*arguments)
        assert result.exit_code == 2 and words in result.output, result.output
