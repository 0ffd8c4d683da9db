"""The file of ratings: what it holds after answers, undoing, several writers and sudden ends."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from pyro_ext.ratings import FILE_NAME, Progress, Ratings, read_ratings


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.JPG", "c d.webp", "ü<i>.png", "e.gif", "f.png", "g.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "below.png").mkdir()
    return tmp_path


def lines(folder):
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


def rate_all(ratings, answer):
    shown = []
    while images := ratings.progress().images:
        ratings.rate(images, answer(images))
        shown.append(images)
    return shown


def test_images_come_once_in_an_order_of_the_seed(folder):
    ratings = Ratings(folder, concept="seven", seed=1)
    first = ratings.progress()
    assert first.total == 7 and first.done == 0 and first.last is None
    shown = rate_all(ratings, lambda images: images[0] < "d")
    assert sorted(name for (name,) in shown) == ratings.images() and shown[0] == first.images
    assert first.upcoming == [name for (name,) in shown[1:4]]
    orders = [Ratings(folder, folder / f"{seed}", seed=seed).progress() for seed in (1, 1, 2)]
    assert orders[0].images + orders[0].upcoming == [name for (name,) in shown[:4]]
    assert orders[1] != orders[2]

    data = read_ratings(folder)
    assert data.concept == "seven" and not data.rankings and not data.skipped
    assert data.labels == {name: name < "d" for (name,) in shown}
    assert lines(folder)[0]["concept"] == "seven" and lines(folder)[1]["time"].endswith("+00:00")


def test_rankings_are_of_so_many_images_and_the_last_ones_have_company(folder):
    ratings = Ratings(folder, concept="old", rank=3)
    shown = rate_all(ratings, lambda images: images[::-1])
    assert [len(images) for images in shown] == [3, 3, 3]
    assert len({*shown[0], *shown[1]}) == 6 and shown[2][1:] == shown[0][:2]
    assert read_ratings(folder / FILE_NAME).rankings == [images[::-1] for images in shown]
    assert ratings.progress()[2:5] == (7, 0, 7)


def test_what_was_skipped_is_no_company(folder):
    ratings = Ratings(folder, rank=3)
    shown = [ratings.progress().images]
    ratings.rate(shown[0], None)
    while images := ratings.progress().images:
        ratings.rate(images, images)
        shown.append(images)
    assert [len(images) for images in shown] == [3, 3, 3] and not {*shown[0]} & {*shown[2]}
    assert ratings.progress()[2:5] == (7, 3, 7)


def test_skipped_images_are_not_asked_about_again(folder):
    ratings = Ratings(folder)
    (first,) = ratings.progress().images
    ratings.rate([first], None)
    data, progress = read_ratings(folder), Ratings(folder).progress()
    assert data.skipped == [first] and not data.labels
    assert progress.skipped == progress.done == 1 and progress.images != [first]


def test_undo_brings_images_back_one_after_the_other(folder):
    ratings = Ratings(folder)
    shown = [ratings.progress().images]
    for answer in (True, None, False):
        ratings.rate(shown[-1], answer)
        shown.append(ratings.progress().images)
    for images in shown[2::-1]:
        last = ratings.progress().last
        assert list(last.images) == images
        ratings.undo(last.line)
        assert ratings.progress().images == images
    assert read_ratings(folder) == ("", {}, [], [])
    assert len(lines(folder)) == 7, "nothing is rewritten"
    with pytest.raises(ValueError, match="line must be that of the last answer, None, got 2"):
        ratings.undo(2)


def test_an_undo_that_comes_late_takes_nothing_else_back(folder):
    one, other = Ratings(folder), Ratings(folder)
    one.rate(["a.png"], True)
    late = one.progress().last.line
    other.rate(["f.png"], False)
    with pytest.raises(ValueError, match="last answer, 3, got 2"):
        one.undo(late)
    assert read_ratings(folder).labels == {"a.png": True, "f.png": False}


def test_two_at_once_rate_no_image_twice(folder):
    one, other = Ratings(folder, rank=2), Ratings(folder)
    shown = one.progress().images
    assert other.rank == 2 and other.progress().images == shown
    other.rate(shown, shown)
    with pytest.raises(ValueError, match="images must not be rated yet"):
        one.rate(shown, shown[::-1])
    assert one.progress().images and not set(one.progress().images) & set(shown)


def test_many_threads_lose_nothing(tmp_path):
    names = [f"{i:03d}.png" for i in range(60)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    ratings = Ratings(tmp_path)

    def rate(i):
        try:
            ratings.rate([names[i // 2]], i % 2 == 0)
        except ValueError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        written = sum(pool.map(rate, range(2 * len(names))))
    assert written == len(names) == len(read_ratings(tmp_path).labels)
    assert len(lines(tmp_path)) == 1 + len(names)


def test_a_file_cut_anywhere_goes_on(folder):
    ratings = Ratings(folder, concept="seven")
    rate_all(ratings, lambda _: True)
    whole = (folder / FILE_NAME).read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for start, end in pairwise(starts):
        number = starts.index(start)
        for cut in {start, start + 1, (start + end) // 2, end - 2, end - 1}:
            (folder / FILE_NAME).write_bytes(whole[:cut])
            again = Ratings(folder, concept="seven")
            # A line that lacks nothing but its end counts.
            assert again.progress().done == max(0, number - 1) + (cut == end - 1 and number > 0)
            rate_all(again, lambda _: False)
            assert len(read_ratings(folder).labels) == 7
            assert len(lines(folder)) == 8


def test_what_a_full_disk_cut_off_is_told_and_not_kept(folder, monkeypatch):
    ratings = Ratings(folder)
    ratings.rate(["a.png"], True)
    whole = (folder / FILE_NAME).read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            ratings.rate(["f.png"], True)
    (folder / FILE_NAME).write_bytes(whole + b'{"images": ["f')
    assert ratings.progress().done == 1
    ratings.rate(["f.png"], False)
    assert read_ratings(folder).labels == {"a.png": True, "f.png": False}


def test_another_question_is_refused_once_there_are_answers(folder):
    Ratings(folder, concept="sevn", rank=2)
    ratings = Ratings(folder, concept="seven", rank=1)  # nothing was answered: a slip is mended
    ratings.rate(["a.png"], True)
    with pytest.raises(ValueError, match="concept must be 'seven', as in the ratings that .*'old'"):
        Ratings(folder, concept="old")
    with pytest.raises(ValueError, match="rank must be 1, as in the ratings that .*got 5"):
        Ratings(folder, rank=5)
    assert (Ratings(folder).concept, Ratings(folder).rank) == ("seven", 1)
    assert Ratings(folder, folder / "other.jsonl", concept="old").progress().done == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG", "path must be a file of ratings"),
        (b'{"a": 1}\n', "path must be a file of ratings"),
        (b"[]\n", "path must be a file of ratings"),
        (b'HEAD\n{"images": ["a.png"]}\n', "line 2 of .* is none"),
        (b'HEAD\n{"images": [], "label": true}\n', "line 2"),
        (b'HEAD\n{"images": ["a", "b"], "label": true}\n', "line 2"),
        (b'HEAD\n{"images": ["a", "b"], "ranking": ["a", "a"]}\n', "line 2"),
        (b'HEAD\n{"images": [7], "skipped": true}\n', "line 2"),
        (b'HEAD\n{"undo": true}\n', "line 2"),
        (b"HEAD\n\n\x00\xff\n", "line 3"),
    ],
)
def test_files_of_something_else_are_left_alone(folder, content, words):
    header = b'{"format": "pyro_ext ratings", "version": 1, "concept": "", "rank": 1}'
    content = content.replace(b"HEAD", header)
    (folder / FILE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Ratings(folder)
    with pytest.raises(ValueError, match=words):
        read_ratings(folder)
    assert (folder / FILE_NAME).read_bytes() == content


def test_links_are_no_images(tmp_path, folder):
    links = tmp_path / "links"
    links.mkdir()
    (links / "x.png").symlink_to(folder / "a.png")
    with pytest.raises(ValueError, match="got 0 in .* left out: 1"):
        Ratings(links)
    (links / "y.png").write_bytes(b"")
    assert Ratings(links).images() == ["y.png"]


def test_images_that_come_and_go(folder):
    ratings = Ratings(folder, rank=5)
    shown = ratings.progress().images
    (folder / shown[0]).unlink()
    with pytest.raises(ValueError, match="images must be in the folder, but .* is not there"):
        ratings.rate(shown, shown)
    assert shown[0] not in ratings.progress().images
    (folder / "z.png").write_bytes(b"")
    assert ratings.progress().total == 7
    for name in ratings.images()[1:]:
        (folder / name).unlink()
    assert ratings.progress() == Progress([], [], 0, 0, 1, None), "one alone has no order"


def test_a_file_that_is_gone_is_told(folder):
    ratings = Ratings(folder)
    (folder / FILE_NAME).unlink()
    with pytest.raises(FileNotFoundError):
        ratings.rate(["a.png"], True)
    assert not (folder / FILE_NAME).exists()


def test_answers_are_of_the_kind_that_was_asked(folder):
    one, several = Ratings(folder), Ratings(folder, folder / "r", rank=3)
    for ratings, images, answer, words in (
        (one, ["a.png"], 1, "answer must be True, False or None, got 1"),
        (one, ["a.png"], ["a.png"], "answer must be True"),
        (one, ["a.png", "f.png"], True, "images must be one file name"),
        (one, "a.png", True, "images must be a list of file names"),
        (one, ["../a.png"], True, "images must be in the folder"),
        (several, ["a.png"], ["a.png"], "images must be 2 to 3 different file names"),
        (several, ["a.png", "a.png"], None, "images must be 1 to 3 different file names"),
        (several, ["a.png", "f.png"], True, "answer must be a list of file names"),
        (several, ["a.png", "f.png"], ["a.png", "g.png"], "answer must be the images in an order"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            ratings.rate(images, answer)
    assert one.progress().done == several.progress().done == 0


def test_names_of_every_kind_survive(tmp_path):
    names = ["\"quoted\" 'name'.png", "<b>&amp;.png", "日本 語.png", "a\nb.png", "-%2e%2f.png"]
    names.append(os.fsdecode(b"latin-\xe4.png"))
    for name in names:
        (tmp_path / name).write_bytes(b"")
    rate_all(Ratings(tmp_path, concept="“x”"), lambda _: True)
    assert set(read_ratings(tmp_path).labels) == set(names)
