"""The folder of a run: what is missing, too many, changed, linked or of another kind is refused."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import filelock
import pytest
import torch

from pyro_ext._lib.files import UNFINISHED
from pyro_ext.checkpoint import Checkpoint, CheckpointError
from pyro_ext.checkpoint.chains import Chunk
from pyro_ext.checkpoint.files import read_tensors, write_tensors
from pyro_ext.checkpoint.folder import CheckpointWriter, DrawFolder

GROUPS = [range(2), range(2, 3)]
STATE = "state.safetensors"


def draws(number):
    return f"draws-{number:08d}.safetensors"


def description(seed=0):
    return {
        "num_samples": 12,
        "groups": [[members.start, members.stop] for members in GROUPS],
        "dims": {},
        "identity": {
            "driver": "MCMC",
            "seed": seed,
            "versions": {"pyro_ext": "0.0.9"},
            "recorded": {"fields": []},
        },
    }


def chunk(number, num_chains):
    value = torch.full((3, num_chains), float(number))
    return Chunk({"x": value}, {"lp": -value}, [3] * num_chains)


def state(num_draws, num_chains):
    return {"num_draws": num_draws, "stopped_at": [None] * num_chains}


def write(folder, seed=0, num_files=4):
    """A run of two groups of chains, with four files of draws each; returns what wrote it."""
    writer = CheckpointWriter(folder)
    writer.description()
    writer.describe(description(seed))
    for members in GROUPS:
        writer.state(members)
        for number in range(num_files):
            after = state(3 * number + 3, len(members))
            writer.append(members, chunk(number, len(members)), {"s": torch.ones(2)}, after)
    writer.close()
    return writer


def resume(folder):
    """Read all that a resumed run reads."""
    with closing(CheckpointWriter(folder)) as writer:
        if writer.description() is not None:
            writer.describe(description())
        for members in GROUPS:
            writer.state(members)


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "run")
    return tmp_path / "run"


def test_what_was_written_is_read(run):
    assert Checkpoint(run).get_samples(True)["x"][:, ::3].tolist() == [[0.0, 1.0, 2.0, 3.0]] * 3
    resume(run)


def rewrite(path):
    """Another content, in a file that is whole in itself."""
    tensors = {"samples/x": torch.zeros(3, 2), "statistics/lp": torch.zeros(3, 2)}
    write_tensors(path, tensors, {"owner": "", "previous": "", "content": {"valid": [3, 3]}})


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(bytes(raw))


def cut(path):
    path.write_bytes(b"1234")


def to_folder(path):
    path.unlink()
    path.mkdir()


def copy_of(number):
    return lambda path: shutil.copy(path.parent / draws(number), path)


# What happens, and to which file of a group.
DAMAGES = {
    "missing": (Path.unlink, draws(1)),
    "last missing": (Path.unlink, draws(3)),
    "all missing": (lambda path: [p.unlink() for p in path.parent.glob("draws-*")], draws(0)),
    "extra": (copy_of(1), draws(4)),
    "extra of other name": (copy_of(1), "draws-copy"),
    "not a file": (to_folder, draws(2)),
    "cut": (cut, draws(2)),
    "changed": (flip, draws(2)),
    "written anew": (rewrite, draws(2)),
    "swapped": (copy_of(1), draws(2)),
    "state missing": (Path.unlink, STATE),
    "state cut": (cut, STATE),
    "state not a file": (to_folder, STATE),
    "draws beside the groups": (cut, f"../{draws(0)}"),
    "another group": (lambda path: shutil.copytree(path.parents[1], path), "../chains-00007"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_names_the_file(kind, tmp_path):
    writer = write(tmp_path)
    damage, name = DAMAGES[kind]
    group = tmp_path / "chains-00000"
    damage(group / name)
    name = name.removeprefix("../")
    for read in (resume, lambda folder: Checkpoint(folder).get_samples()):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint(tmp_path).chains()
    if "group" not in kind:
        with pytest.raises(CheckpointError, match=name):
            list(writer.chunks(GROUPS[0]))


def test_a_folder_of_another_group_or_run(run, tmp_path):
    write(tmp_path / "other", seed=1)
    first, second = run / "chains-00000", run / "chains-00002"
    for other in (second, tmp_path / "other" / "chains-00000"):
        shutil.rmtree(first)
        shutil.copytree(other, first)
        for read in (resume, lambda folder: Checkpoint(folder).get_samples()):
            with pytest.raises(CheckpointError, match="chains-00000.*belongs to another run"):
                read(run)


def test_a_run_that_ended_between_draws_and_state(tmp_path, monkeypatch):
    """The file that the state does not name yet is no damage, and is written anew."""
    write(tmp_path, num_files=2)
    group = tmp_path / "chains-00000"
    before = (group / STATE).read_bytes()
    writer = CheckpointWriter(tmp_path)
    writer.describe(description())
    writer.state(GROUPS[0])
    writer.append(GROUPS[0], chunk(2, 2), {}, state(9, 2))
    writer.close()
    (group / STATE).write_bytes(before)
    (group / f"{STATE}{UNFINISHED}").write_bytes(b"12")
    assert Checkpoint(tmp_path).get_samples(True)["x"].shape == (3, 6)
    resume(tmp_path)
    flip(group / draws(2))
    with pytest.raises(CheckpointError, match=draws(2)):
        Checkpoint(tmp_path).get_samples()


@pytest.mark.parametrize(
    "name",
    ["run.json", f"run.json{UNFINISHED}", "lock", "notes", "chains-00000"]
    + [f"chains-00000/{name}" for name in (draws(1), STATE, f"{STATE}{UNFINISHED}")],
)
def test_links_are_refused_and_not_written_to(name, run, tmp_path):
    target = tmp_path / "target"
    if (run / name).exists():
        shutil.move(run / name, target)
    else:
        target.write_text("precious")
    before = target.read_bytes() if target.is_file() else sorted(target.iterdir())
    (run / name).symlink_to(target)
    for read in (resume, lambda folder: Checkpoint(folder).get_samples()):
        with pytest.raises(CheckpointError, match=f"{name} is a symbolic link"):
            read(run)
    assert before == (target.read_bytes() if target.is_file() else sorted(target.iterdir()))


def test_a_link_that_appears_during_a_run(run, tmp_path):
    writer = CheckpointWriter(run)
    writer.describe(description())
    writer.state(GROUPS[0])
    target = tmp_path / "target"
    target.write_text("precious")
    for name, act in (
        (f"chains-00000/{STATE}", lambda: writer.append(GROUPS[0], None, {}, state(12, 2))),
        ("run.json", lambda: writer.describe(description())),
    ):
        link = run / f"{name}{UNFINISHED}"
        link.symlink_to(target)
        with pytest.raises(CheckpointError, match="symbolic link"):
            act()
        link.unlink()
    shutil.move(run / "chains-00000", tmp_path / "moved")
    (run / "chains-00000").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="chains-00000 is a symbolic link"):
        writer.append(GROUPS[0], None, {}, state(12, 2))
    writer.close()
    assert target.read_text() == "precious"


def test_the_folder_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    resume(tmp_path / "link")
    assert Checkpoint(tmp_path / "link").get_samples()["x"].shape == (36,)


def test_a_changed_description(run, subtests):
    path = run / "run.json"
    text = path.read_text()
    changes = {
        "seed": ('"seed": 0', '"seed": 1'),
        "no groups": ('"groups"', '"group"'),
        "no JSON": ("{", "["),
        "nothing": (text, ""),
        "a list": (text, "[1, 2]"),
        "no identity": ('"identity"', '"other"'),
    }
    for name, (old, new) in changes.items():
        path.write_text(text.replace(old, new))
        for read in (resume, Checkpoint):
            with subtests.test(name), pytest.raises(CheckpointError, match="run.json"):
                read(run)
    path.write_text(text.replace("  ", " "))  # not what it says
    resume(run)
    path.unlink()
    with pytest.raises(CheckpointError, match="contains .*chains-00000.* but no run"):
        resume(run)
    with pytest.raises(CheckpointError, match="cannot be read .* it has no run.json"):
        Checkpoint(run)


def test_another_format_says_which_version_wrote_it(run):
    path = run / "run.json"
    old = json.loads(path.read_text())
    for content, version in ((old, "0.0.9"), ({"identity": 3}, "of another version")):
        path.write_text(json.dumps(content | {"format": 1}))
        for read in (resume, Checkpoint):
            with pytest.raises(CheckpointError, match=f"format 1, written by pyro_ext {version}"):
                read(run)


def test_kinds_of_runs(run, tmp_path):
    independent(tmp_path / "draws")
    for read in (resume, Checkpoint):
        with pytest.raises(CheckpointError, match="independent draws of a PosteriorBootstrap"):
            read(tmp_path / "draws")
    with pytest.raises(CheckpointError, match="chains of a MCMC, wanted independent draws"):
        independent(run)


def independent(folder, starts=(0, 2, 4)):
    with closing(DrawFolder(folder)) as opened:
        opened.description()
        opened.describe({"identity": {"driver": "PosteriorBootstrap"}})
        opened.open()
        for start in starts:
            members = range(start, start + 2)
            if opened.load(members) is None:
                opened.save(members, {"x": torch.arange(start, start + 2)})


def to_link(path):
    shutil.move(path, path.parents[1] / "away")
    path.symlink_to("away")


@pytest.mark.parametrize("change", [Path.unlink, cut, flip, rewrite, to_link, None])
def test_independent_draws(change, tmp_path):
    name, folder = "draws-00000002-00000004.safetensors", tmp_path / "run"
    for _ in range(2):
        independent(folder)
    if change is None:
        shutil.copy(folder / name, folder / "draws-copy")
    else:
        change(folder / name)
    with pytest.raises(CheckpointError, match=name if change else "draws-copy"):
        independent(folder)


def test_independent_draws_of_a_run_that_ended_between_draws_and_state(tmp_path):
    independent(tmp_path)
    before, last = tmp_path / STATE, tmp_path / "draws-00000004-00000006.safetensors"
    states = [read_tensors(before), read_tensors(last)]
    last.unlink()
    with pytest.raises(CheckpointError, match=last.name):
        independent(tmp_path)
    shutil.rmtree(tmp_path)
    independent(tmp_path, [0, 2])
    early = before.read_bytes()
    independent(tmp_path)
    before.write_bytes(early)
    independent(tmp_path)
    for path, (tensors, *known) in zip((before, last), states, strict=True):
        again, *found = read_tensors(path)
        assert known == found and tensors.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in tensors.items())


def test_a_folder_that_is_gone(run, tmp_path):
    writer = CheckpointWriter(run)
    writer.describe(description())
    writer.state(GROUPS[0])
    shutil.move(run, tmp_path / "moved")
    with pytest.raises(CheckpointError, match="no longer exists.*was moved"):
        list(writer.chunks(GROUPS[0]))
    with pytest.raises(CheckpointError, match="chains-00000 cannot be created.*was moved"):
        writer.append(GROUPS[0], None, {}, state(12, 2))
    with pytest.raises(CheckpointError, match=r"run.json cannot be written .* was it moved\?"):
        writer.describe(description())
    writer.close()
    with pytest.raises(CheckpointError, match="is not there"):
        Checkpoint(run)


def test_a_folder_that_cannot_be_written_to(run, monkeypatch):
    def refuse(self, timeout):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(CheckpointError, match="cannot be written to .Permission denied.*in a copy"):
        resume(run)
    assert Checkpoint(run).get_samples()["x"].shape == (36,)
