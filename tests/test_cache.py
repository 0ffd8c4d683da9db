"""Machine code is only taken from where nobody else writes, as it was written."""

import os
from functools import partial
from pathlib import Path

import pytest

from pyro_ext._lib import cache
from pyro_ext._lib.cache import CodeFolder


def test_code_comes_back_by_its_key(tmp_path: Path) -> None:
    folder = CodeFolder(tmp_path / "new" / "code")
    assert folder.find("key") is None
    folder.keep("key", ".so", b"code")
    folder.keep("another", ".so", b"other code")
    path, code = folder.find("key") or (None, b"")
    assert path is not None and path.suffix == ".so" and code == path.read_bytes() == b"code"


def test_what_is_damaged_is_not_found(tmp_path: Path, subtests: pytest.Subtests) -> None:
    folder = CodeFolder(tmp_path / "code")
    folder.keep("key", ".so", b"code")
    path, code = folder.find("key") or (Path(), b"")
    flips = [int.from_bytes(code) ^ 1 << bit for bit in range(8 * len(code))]
    damages = {
        **{hex(one): partial(path.write_bytes, one.to_bytes(len(code))) for one in flips},
        "a cut": lambda: path.write_bytes(code[:-1]),
        "empty": lambda: path.write_bytes(b""),
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a dangling link": lambda: path.symlink_to("nothing"),
    }
    for name, damage in damages.items():
        with subtests.test(name):
            path.unlink()
            damage()
            assert folder.find("key") is None
            if path.is_dir():
                path.rmdir()
            folder.keep("key", ".so", code)
            assert folder.find("key") == (path, code)


def test_folders_of_others_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, is_used in ((0o700, True), (0o755, True), (0o775, False), (0o777, False)):
        (tmp_path / f"{mode:o}").mkdir()
        (tmp_path / f"{mode:o}").chmod(mode)
        folder = CodeFolder(tmp_path / f"{mode:o}")
        folder.keep("key", ".so", b"code")
        assert bool(folder.find("key")) is bool(list((tmp_path / f"{mode:o}").iterdir())) is is_used
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert CodeFolder(tmp_path / "700").find("key") is None
    for path in (None, Path(os.devnull, "code")):
        folder = CodeFolder(path)
        folder.keep("key", ".so", b"code")
        assert folder.find("key") is None


def test_what_was_not_used_for_longest_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST_FILES", 2)
    folder = CodeFolder(tmp_path / "code")
    (tmp_path / "code" / "of others").mkdir()
    for age in (1, 2):
        folder.keep(f"key{age}", ".so", b"code")
        path, _ = folder.find(f"key{age}") or (Path(), b"")
        os.utime(path, (age, age))
    folder.find("key1")
    folder.keep("key3", ".so", b"code")
    assert {path.name[:4] for path in (tmp_path / "code").iterdir()} == {"key1", "key3", "of o"}
