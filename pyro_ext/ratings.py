"""What a person says about images: whether they show a concept, or which show more of it.

``pyro-ext rate FOLDER`` serves a page, on this machine alone, on which a person rates the images of
a folder. Each answer is a line of JSON in a file, written before the page goes on, so that nothing
is lost however the command ends. :func:`read_ratings` reads the file for a reward model, and
:class:`Ratings` is the file with its folder, for another way to ask than the page.

The first line says what was asked. Each other line is an answer, or takes back the last one::

    {"format": "pyro_ext ratings", "version": 1, "concept": "seven", "rank": 1}
    {"images": ["0007.png"], "label": true, "time": "2026-11-28T15:04:05+00:00"}
    {"undo": true, "time": "2026-11-28T15:04:09+00:00"}

Nothing here needs more than the standard library.
"""

import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from pyro_ext._lib.files import json_object, open_file, read_bytes, sync_folder

__all__ = [
    "FILE_NAME",
    "IMAGE_TYPES",
    "MAX_RANK",
    "Progress",
    "RatedImages",
    "Rating",
    "Ratings",
    "read_ratings",
]

FILE_NAME = "ratings.jsonl"
MAX_RANK = 12
IMAGE_TYPES = {
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}

_HEADER_START = b'{"format": "pyro_ext ratings", "version": 1, '


class Rating(NamedTuple):
    """One answer: a label, a ranking, or neither where the person skipped the images."""

    line: int  #: of the file, the first of which is 1
    images: tuple[str, ...]  #: file names of what was shown, in the order in which it was
    label: bool | None  #: whether the image shows the concept
    ranking: tuple[str, ...] | None  #: the same names, the one that shows most of it first

    @property
    def is_skipped(self) -> bool:
        """Whether the person gave no answer."""
        return self.label is None and self.ranking is None


class RatedImages(NamedTuple):
    """What a file of ratings says, without what was taken back."""

    concept: str  #: what was asked about
    labels: dict[str, bool]  #: by file name, whether the image shows the concept
    rankings: list[list[str]]  #: file names, the one that shows most of the concept first
    skipped: list[str]  #: file names of images that the person did not rate


class Progress(NamedTuple):
    """How far a person is, and what to show next."""

    images: list[str]  #: file names to ask about now, none where all are rated
    upcoming: list[str]  #: those after them
    done: int  #: how many images of the folder are rated or skipped
    skipped: int  #: how many of these are skipped
    total: int  #: how many images the folder has
    last: Rating | None  #: what :meth:`Ratings.undo` takes back


def read_ratings(path: str | os.PathLike[str]) -> RatedImages:
    """Read a file of ratings, also while they are given.

    :param path: the file, or the folder whose ``ratings.jsonl`` it is.
    :returns: labels by file name, and rankings as lists of file names, the one that shows most of
        the concept first.
    :raises FileNotFoundError: where there is none.
    :raises ValueError: where the file holds something else.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in ("one.png", "seven.png"):
        ...     _ = Path(folder.name, name).write_bytes(b"")
        >>> ratings = Ratings(folder.name, concept="seven")
        >>> ratings.rate(["one.png"], False)
        >>> ratings.rate(["seven.png"], True)
        >>> read_ratings(folder.name).labels
        {'one.png': False, 'seven.png': True}
        >>> folder.cleanup()
    """
    path = _as_path("path", path)
    if path.is_dir():
        path /= FILE_NAME
    contents = _parse(read_bytes(path), path)
    found = RatedImages(contents.concept, {}, [], [])
    for rating in contents.ratings:
        if rating.label is not None:
            found.labels[rating.images[0]] = rating.label
        elif rating.ranking is not None:
            found.rankings.append(list(rating.ranking))
        else:
            found.skipped.extend(rating.images)
    return found


class Ratings:
    """The ratings of the images of a folder: what to ask next, and the file of answers.

    The file is the only state. Each method looks whether it has changed, and so sees what another
    process wrote. Methods may be called from several threads.

    Images are the files in the folder itself, not below it, whose names end like those of
    ``IMAGE_TYPES``. Symbolic links are left out.

    :param folder: the images.
    :param output: the file of the answers, by default ``ratings.jsonl`` in the folder. Where there
        is one with answers, they count.
    :param str concept: what the images may show. By default what the file says, and in a new file
        nothing.
    :param int rank: how many images the person sees together and orders, at most 12; with 1 the
        question is yes or no. By default what the file says, and in a new file 1.
    :param int seed: decides in which order images are shown.
    :raises ValueError: where the folder has too few images, or the file answers another question or
        is none of ratings.
    :raises OSError: where the file cannot be read or written.

    Example::

        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> for name in "abcd":
        ...     _ = Path(folder.name, name + ".png").write_bytes(b"")
        >>> ratings = Ratings(folder.name, concept="seven", rank=3)
        >>> shown = ratings.progress().images
        >>> ratings.rate(shown, sorted(shown))
        >>> ratings.progress().done
        3
        >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        output: str | os.PathLike[str] | None = None,
        *,
        concept: str | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = _as_path("folder", folder)
        self.path = self.folder / FILE_NAME if output is None else _as_path("output", output)
        if concept is not None and not isinstance(concept, str):
            raise TypeError(f"concept must be text, got {concept!r:.80}")
        if rank is not None:
            rank = _check_integer("rank", rank, 1, MAX_RANK)
        self.seed = _check_integer("seed", seed, 0)
        if not self.folder.is_dir():
            raise ValueError(f"folder must be a folder of images, got {str(self.folder)!r}")
        names, num_links = self._scan()
        if len(names) < (rank or 1):
            raise ValueError(
                f"folder must have at least {rank or 1} images ({' '.join(IMAGE_TYPES)}), got "
                f"{len(names)} in {str(self.folder)!r}"
                + (f" (symbolic links are left out: {num_links})" if num_links else "")
            )
        # To read a device may have no end, and a link leads to a file of something else.
        is_other = self.path.exists() and not self.path.is_file()
        if is_other or self.path.is_symlink():
            raise ValueError(f"output must be a file, got {str(self.path)!r}")
        self._lock = threading.RLock()
        self._seen: tuple[int, ...] = ()
        self._open(concept, rank)

    @property
    def concept(self) -> str:
        """What was asked about."""
        return self._contents.concept

    @property
    def rank(self) -> int:
        """How many images are ordered together; 1 for yes or no."""
        return self._contents.rank

    def images(self) -> list[str]:
        """Return the file names of the images that are in the folder now."""
        return self._scan()[0]

    def progress(self) -> Progress:
        """Look at folder and file, and say what to ask next."""
        with self._lock:
            self._read()
            ratings = self._contents.ratings
        names = self.images()
        done = {name for rating in ratings for name in rating.images}
        rated = {name for rating in ratings if not rating.is_skipped for name in rating.images}
        names.sort(key=lambda name: sha256(os.fsencode(f"{self.seed}/{name}")).digest())
        waiting = [name for name in names if name not in done]
        size = self.rank
        shown = waiting[:size]
        if shown:  # the last ones are ordered among others that were before
            shown += [name for name in names if name in rated][: size - len(shown)]
        return Progress(
            shown if len(shown) >= min(size, 2) else [],
            waiting[size : size + max(size, 3)],
            len(names) - len(waiting),
            len((done - rated).intersection(names)),
            len(names),
            ratings[-1] if ratings else None,
        )

    def rate(self, images: Sequence[str], answer: bool | Sequence[str] | None) -> None:
        """Write down an answer. It is on the disk when this returns.

        :param Sequence images: file names of what was shown.
        :param answer: whether the image shows the concept, or the names ordered, the one that
            shows most of it first; ``None`` to skip them.
        :raises ValueError: where the images are not in the folder or all of them are rated, or the
            answer is of another kind than the question.
        :raises OSError: where it cannot be written.
        """
        shown = _check_names("images", images)
        least, most = min(self.rank, 2 if answer is not None else 1), self.rank
        if len(shown) != len(set(shown)) or not least <= len(shown) <= most:
            wanted = f"{least} to {most} different file names" if most > 1 else "one file name"
            raise ValueError(f"images must be {wanted}, got {shown!r:.80}")
        record: dict[str, Any] = {"images": shown}
        if answer is None:
            record["skipped"] = True
        elif most == 1:
            if not isinstance(answer, bool):
                raise TypeError(f"answer must be True, False or None, got {answer!r:.80}")
            record["label"] = answer
        else:
            record["ranking"] = _check_names("answer", answer)
            if sorted(record["ranking"]) != sorted(shown):
                raise ValueError(f"answer must be the images in an order, got {answer!r:.80}")
        gone = set(shown).difference(self.images())
        if gone:
            raise ValueError(f"images must be in the folder, but {sorted(gone)[0]!r} is not there")
        with self._lock:
            self._read()
            if all(any(name in r.images for r in self._contents.ratings) for name in shown):
                raise ValueError(f"images must not be rated yet, but {shown[0]!r} is")
            self._append(record)

    def undo(self, line: int) -> None:
        """Take the last answer back.

        :param int line: its line, so that no other answer is taken back by mistake.
        :raises ValueError: where the last answer that counts has another line.
        :raises OSError: where it cannot be written.
        """
        line = _check_integer("line", line, 1)
        with self._lock:
            self._read()
            ratings = self._contents.ratings
            last = ratings[-1].line if ratings else None
            if line != last:
                raise ValueError(f"line must be that of the last answer, {last}, got {line}")
            self._append({"undo": True})

    def _scan(self) -> tuple[list[str], int]:
        """Names of the images, and how many links were left out."""
        names, num_links = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in IMAGE_TYPES and not entry.name.startswith("."):
                    if entry.is_symlink():
                        num_links += 1
                    elif entry.is_file():
                        names.append(entry.name)
        return sorted(names), num_links

    def _open(self, concept: str | None, rank: int | None) -> None:
        """Begin the file, or go on with it where it answers the same question."""
        open_file(self.path, "ab", links=False).close()  # what cannot be written is known now
        content = read_bytes(self.path)
        old = None
        if not (b"\n" not in content and _HEADER_START.startswith(content[: len(_HEADER_START)])):
            old = _parse(content, self.path)
        if old is not None and old.ratings:
            for argument, wanted, found in (
                ("concept", concept, old.concept),
                ("rank", rank, old.rank),
            ):
                if wanted not in (None, found):
                    raise ValueError(
                        f"{argument} must be {found!r}, as in the ratings that {self.path} has "
                        f"already, or output another file; got {wanted!r:.80}"
                    )
        else:  # nothing that counts is lost
            question = {
                "concept": concept if concept is not None else old.concept if old else "",
                "rank": rank if rank is not None else old.rank if old else 1,
            }
            self._write(_HEADER_START.decode() + json.dumps(question)[1:], 0)
            sync_folder(self.path.parent)
        self._read()

    def _read(self) -> None:
        """Read the file where it has changed."""
        stat = self.path.stat()
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen != self._seen:
            self._contents = _parse(read_bytes(self.path), self.path)
            self._seen = seen

    def _append(self, record: dict[str, Any]) -> None:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps(record | {"time": time})
        self._write(line if self._contents.is_ended else f"\n{line}", self._contents.size)
        self._read()

    def _write(self, line: str, size: int) -> None:
        """Add a line after what counts; a line that a killed process left half goes."""
        with open_file(self.path, "ab", links=False) as file:
            if file.tell() > size:
                file.truncate(size)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


class _Contents(NamedTuple):
    """What a file of ratings holds."""

    concept: str
    rank: int
    ratings: list[Rating]  # without those that were taken back
    size: int  # bytes up to the end of the last whole line
    is_ended: bool  # whether a line break stands there


def _parse(content: bytes, path: Path) -> _Contents:
    """Read what a file holds; half of a line at its end, of a process that was killed, is none."""
    *lines, tail = content.split(b"\n")
    size = len(content) - len(tail)
    is_ended = True
    header = _object(lines[0]) if lines and lines[0].startswith(_HEADER_START) else None
    concept, rank = (header or {}).get("concept"), (header or {}).get("rank")
    if not (isinstance(concept, str) and isinstance(rank, int) and 1 <= rank <= MAX_RANK):
        raise ValueError(
            f"path must be a file of ratings as `pyro-ext rate` writes them, got {str(path)!r}"
        )
    if _object(tail) is not None:  # whole but for its line break, as editors leave it
        lines.append(tail)
        size, is_ended = len(content), False
    ratings: list[Rating] = []
    for number, line in enumerate(lines[1:], 2):
        record = _object(line)
        rating = None if record is None else _rating(number, record)
        if rating is not None:
            ratings.append(rating)
        elif record is not None and record.get("undo") is True and ratings:
            ratings.pop()
        elif line.strip():
            raise ValueError(
                f"path must be a file of ratings, but line {number} of {path} is none: "
                f"{line.decode(errors='replace')!r:.80}"
            )
    return _Contents(concept, rank, ratings, size, is_ended)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return json_object(line)
    except ValueError:
        return None


def _rating(number: int, record: dict[str, Any]) -> Rating | None:
    images, label, ranking = (record.get(key) for key in ("images", "label", "ranking"))
    if not _are_names(images):
        return None
    if record.get("skipped") is True:
        return Rating(number, tuple(images), None, None)
    if isinstance(label, bool) and len(images) == 1:
        return Rating(number, tuple(images), label, None)
    if _are_names(ranking) and sorted(ranking) == sorted(images):
        return Rating(number, tuple(images), None, tuple(ranking))
    return None


def _are_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _as_path(argument: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError(f"{argument} must be a path, got {value!r:.80}")
    return Path(value)


def _check_names(argument: str, value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not _are_names(list(value)):
        raise TypeError(f"{argument} must be a list of file names, got {value!r:.80}")
    return list(value)


def _check_integer(argument: str, value: Any, least: int, most: int | None = None) -> int:
    """Check an integer; ``pyro_ext._lib.checks`` would have the command wait for PyTorch."""
    wanted = f">= {least}" if most is None else f"from {least} to {most}"
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer {wanted}, got {value!r:.80}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{argument} must be an integer {wanted}, got {value!r:.80}")
    return number
