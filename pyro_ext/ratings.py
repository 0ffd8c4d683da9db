"""Ratings of images by a person: whether they show a concept, or which show more of it.

``pyro-ext rate FOLDER`` writes a page that contains the images of a folder. A person opens it in a
browser, on any computer. The page saves the answers as a file, ``pyro-ext rate FOLDER --answers
FILE`` adds them to those of the folder, and :func:`read_ratings` reads them for a reward model.

The first line of such a file describes the question. Each other line is an answer::

    {"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1}
    {"images": ["0007.png"], "label": true, "time": "2026-11-28T15:04:05.000Z"}

This module needs only the standard library.
"""

import json
import os
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from pyro_ext._lib.files import json_object, open_file, read_bytes, write_bytes

__all__ = ["FILE_NAME", "IMAGE_TYPES", "RatedImages", "add_ratings", "rating_page", "read_ratings"]

FILE_NAME = "ratings.jsonl"
MAX_RANK = 12
MAX_BYTES = 1 << 28  # of images in a page, which a browser has to hold
IMAGE_TYPES = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


class RatedImages(NamedTuple):
    """Contents of a file of ratings."""

    concept: str  #: what was asked about
    labels: dict[str, bool]  #: by file name, whether the image shows the concept
    rankings: list[list[str]]  #: file names, the one that shows most of the concept first
    skipped: list[str]  #: file names of images that the person did not rate
    rank: int = 1  #: how many images were ordered together; 1 for yes or no

    def names(self) -> set[str]:
        """Return the file names of all images that were rated or skipped."""
        return {*self.labels, *self.skipped, *(name for names in self.rankings for name in names)}


def read_ratings(path: str | os.PathLike[str]) -> RatedImages:
    r"""Read a file of ratings.

    :param path: the file, or a folder with a ``ratings.jsonl``.
    :returns: labels by file name, and rankings as lists of file names, with the image that shows
        most of the concept first. If a question was answered twice, the later answer counts.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file does not contain ratings.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = Path(folder.name, "ratings.jsonl").write_text(
        ...     '{"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1}\n'
        ...     '{"images": ["one.png"], "label": false}\n'
        ...     '{"images": ["seven.png"], "label": true}\n'
        ... )
        >>> read_ratings(folder.name).labels
        {'one.png': False, 'seven.png': True}
        >>> folder.cleanup()
    """
    path = _as_path("path", path)
    if path.is_dir():
        path /= FILE_NAME
    return _parse(read_bytes(path), path)


def rating_page(
    folder: str | os.PathLike[str],
    *,
    concept: str | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> str:
    """Make a self-contained HTML page on which a person rates images.

    The images are the files directly in the folder whose extension is in ``IMAGE_TYPES`` and that
    have no answer in the folder's ``ratings.jsonl`` yet. Symbolic links are left out.

    :param folder: the folder of images, at most 256 MB.
    :param str concept: what to look for in the images. Default: that of the folder's ratings, or
        none.
    :param int rank: the number of images that the person sees together and ranks, at most 12. With
        1, the question is yes or no. Default: that of the folder's ratings, or 1.
    :param int seed: seed of the order in which images are shown.
    :returns: the page.
    :raises ValueError: if too few images are left, they are too large, or the folder's ratings file
        is invalid or answers another question.
    :raises OSError: if an image cannot be read.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in "abcd":
        ...     _ = Path(folder.name, name + ".png").write_bytes(b"")
        >>> page = rating_page(folder.name, concept="seven", rank=3)
        >>> page.count("data:image/png;base64,")
        4
        >>> folder.cleanup()
    """
    folder = _as_folder(folder)
    if concept is not None and not isinstance(concept, str):
        raise TypeError(f"concept must be text, got {concept!r:.80}")
    rank = None if rank is None else _checked("rank", rank, 1, MAX_RANK)
    seed = _checked("seed", seed, 0)
    kept = _kept(folder)
    if kept is not None:
        _check_same("concept", concept, kept.concept, folder)
        _check_same("rank", rank, kept.rank, folder)
        concept, rank = kept.concept, kept.rank
    rank = rank or 1
    names = [name for name in _images(folder) if kept is None or name not in kept.names()]
    least = rank if kept is None else min(rank, 2)
    if len(names) < least:
        raise ValueError(
            f"folder must have at least {least} images ({' '.join(IMAGE_TYPES)}) without an "
            f"answer, got {len(names)} in {str(folder)!r}"
        )
    names.sort(key=lambda name: sha256(os.fsencode(f"{seed}/{name}")).digest())
    size = sum((folder / name).stat().st_size for name in names)
    if size > MAX_BYTES:
        raise ValueError(
            f"folder must have images of at most {MAX_BYTES >> 20} MB in total, got {size >> 20} "
            "MB: make them smaller, or move some to another folder"
        )
    images = [{"name": _text(name), "url": _url(folder / name)} for name in names]
    # Answers that the browser keeps are of these images, and of no others with their names.
    key = sha256(json.dumps([concept, rank, images]).encode()).hexdigest()
    content = {"concept": concept or "", "rank": rank, "images": images, "key": key}
    # As text within a script, which a name must not end.
    data = json.dumps(content).replace("<", "\\u003c")
    page = files("pyro_ext").joinpath("ratings.html").read_text("utf-8")
    return page.replace("{data}", data)


def add_ratings(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> RatedImages:
    """Add the answers that a page has saved to the ``ratings.jsonl`` of its folder.

    :param folder: the folder of images.
    :param path: the file that the page has saved. Its answers replace earlier ones.
    :returns: all answers of the folder.
    :raises ValueError: if the file does not contain ratings, answers another question than the
        folder's ratings, or is about images that are not in the folder.
    :raises OSError: if a file cannot be read or written.
    """
    folder, path = _as_folder(folder), _as_path("path", path)
    content = read_bytes(path)
    new, kept = _parse(content, path), _kept(folder)
    if missing := sorted(new.names().difference(map(_text, _images(folder)))):
        raise ValueError(
            f"path must be about images of the folder, but {missing[0]!r} is not there"
        )
    if kept is not None:
        _check_same("concept", new.concept, kept.concept, folder)
        _check_same("rank", new.rank, kept.rank, folder)
        before = read_bytes(folder / FILE_NAME).rstrip(b"\n")
        content = before + b"\n" + content.partition(b"\n")[2]
    write_bytes(folder / FILE_NAME, content)
    return read_ratings(folder)


def _kept(folder: Path) -> RatedImages | None:
    """The ratings of a folder, if it has any."""
    return read_ratings(folder) if (folder / FILE_NAME).exists() else None


def _check_same(argument: str, wanted: object, found: object, folder: Path) -> None:
    """Refuse another question than that of a folder's ratings."""
    if wanted not in (None, found):
        raise ValueError(
            f"{argument} must be {found!r}, as in the existing ratings in {folder / FILE_NAME}; "
            f"for another question, use another folder; got {wanted!r:.80}"
        )


def _images(folder: Path) -> list[str]:
    """File names of the images in a folder."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in IMAGE_TYPES
            and not entry.name.startswith(".")
            and entry.is_file(follow_symlinks=False)
        )


def _url(path: Path) -> str:
    """An image as an address that holds it."""
    with open_file(path, links=False) as file:
        kind = IMAGE_TYPES[path.suffix.lower()]
        return f"data:{kind};base64,{b64encode(file.read()).decode()}"


def _text(name: str) -> str:
    """A file name as it can stand in a page, whatever bytes it has."""
    return os.fsencode(name).decode(errors="replace")


def _parse(content: bytes, path: Path) -> RatedImages:
    """Read what a file of ratings holds."""
    lines = content.splitlines()
    header = _object(lines[0]) if lines else {}
    concept, rank = header.get("concept"), header.get("rank")
    is_known = header.get("format") == "pyro_ext ratings" and header.get("version") == 1
    is_question = isinstance(concept, str) and isinstance(rank, int) and 1 <= rank <= MAX_RANK
    if not (is_known and is_question):
        raise ValueError(
            f"path must be a file of ratings saved by a page of `pyro-ext rate`, got {str(path)!r}"
        )
    found = RatedImages(concept, {}, [], [], rank)  # type: ignore[arg-type]
    for number, record in _records(lines[1:], path):
        images, label, ranking = (record.get(key) for key in ("images", "label", "ranking"))
        if not _are_names(images):
            is_answer = False
        elif is_answer := record.get("skipped") is True:
            found.skipped.extend(images)
        elif is_answer := isinstance(label, bool) and len(images) == 1:
            found.labels[images[0]] = bool(label)
        elif is_answer := _are_names(ranking) and sorted(ranking) == sorted(images):
            found.rankings.append(list(ranking or ()))
        if not is_answer:
            raise ValueError(
                f"path must be a file of ratings, but line {number} of {path} is not a rating"
            )
    skipped = [name for name in dict.fromkeys(found.skipped) if name not in found.labels]
    return found._replace(skipped=skipped)


def _records(lines: list[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answers with the numbers of their lines, without those that were taken back."""
    records = list[tuple[int, dict[str, Any]]]()
    for number, line in enumerate(lines, 2):
        record = _object(line)
        if record.get("undo") is True and records:  # files of releases before 0.3 have these
            records.pop()
        elif line.strip():
            records.append((number, record))
    yield from records


def _object(line: bytes) -> dict[str, Any]:
    try:
        return json_object(line)
    except ValueError:
        return {}


def _are_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _as_path(argument: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError(f"{argument} must be a path, got {value!r:.80}")
    return Path(value)


def _as_folder(value: Any) -> Path:
    folder = _as_path("folder", value)
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder of images, got {str(folder)!r}")
    return folder


def _checked(argument: str, value: Any, least: int, most: int | None = None) -> int:
    """Check an integer; ``pyro_ext._lib.checks`` would have the command wait for PyTorch."""
    wanted = f">= {least}" if most is None else f"from {least} to {most}"
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer {wanted}, got {value!r:.80}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{argument} must be an integer {wanted}, got {value!r:.80}")
    return number
