"""Valid calls of what keeps ratings of images, for :mod:`walk` to spoil."""

from pathlib import Path

from pyro_ext.ratings import read_ratings
from tests.bad_input.walk import Call, call

HEADER = '{"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1}'


def ratings() -> dict[str, Call]:
    folder = Path("images")
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"")
    Path("answers.jsonl").write_text(HEADER + '\n{"images": ["a.png"], "label": true}\n')
    assert read_ratings("answers.jsonl").labels
    return {
        "read_ratings": call(path="answers.jsonl"),
        "add_ratings": call(folder="images", path="answers.jsonl"),
        "rating_page": call(folder="images", concept="seven", rank=1),
    }


TABLES = {"pyro_ext.ratings": ratings}
