"""Valid calls of what keeps ratings of images, for :mod:`walk` to spoil."""

from pathlib import Path

from pyro_ext.ratings import Ratings, read_ratings
from tests.bad_input.walk import Call, call, of


def ratings() -> dict[str, Call]:
    folder = Path("images")
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"")
    one = Ratings(folder, concept="seven")
    one.rate(["a.png"], True)
    several = Ratings(folder, "rankings.jsonl", rank=2)
    assert read_ratings("images").labels
    return {
        "read_ratings": call(path="images"),
        "Ratings": call(folder="images", output="other.jsonl", concept="old", rank=2, seed=1),
        "Ratings.rate": of(one, images=["b.png"], answer=True),
        "Ratings.rate rankings": of(several, images=["a.png", "b.png"], answer=["b.png", "a.png"]),
        "Ratings.undo": of(several, line=2),
    }


TABLES = {"pyro_ext.ratings": ratings}
