"""The folder of a run: what is missing, too many, changed, linked or of another kind is refused."""

import json
import shutil

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
    writer = CheckpointWriter(folder)
    try:
        if writer.description() is not None:
            writer.describe(description())
        for members in GROUPS:
            writer.state(members)
    finally:
        writer.close()


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


DAMAGES = {
    "missing": lambda g: ((g / draws(1)).unlink(), draws(1))[1],
    "last missing": lambda g: ((g / draws(3)).unlink(), draws(3))[1],
    "all missing": lambda g: ([path.unlink() for path in g.glob("draws-*")], draws(0))[1],
    "extra": lambda g: (shutil.copy(g / draws(1), g / draws(4)), draws(4))[1],
    "extra of other name": lambda g: (shutil.copy(g / draws(1), g / "draws-copy"), "draws-copy")[1],
    "not a file": lambda g: ((g / draws(2)).unlink(), (g / draws(2)).mkdir(), draws(2))[2],
    "cut": lambda g: ((g / draws(2)).write_bytes(b"1234"), draws(2))[1],
    "changed": lambda g: (flip(g / draws(2)), draws(2))[1],
    "written anew": lambda g: (rewrite(g / draws(2)), draws(2))[1],
    "swapped": lambda g: (shutil.copy(g / draws(1), g / draws(2)), draws(2))[1],
    "state missing": lambda g: ((g / STATE).unlink(), STATE)[1],
    "state cut": lambda g: ((g / STATE).write_bytes(b""), STATE)[1],
    "state not a file": lambda g: ((g / STATE).unlink(), (g / STATE).mkdir(), STATE)[2],
    "draws beside the groups": lambda g: (
        shutil.copy(g / draws(1), g.parent / draws(0)),
        draws(0),
    )[1],
    "another group": lambda g: (shutil.copytree(g, g.parent / "chains-00007"), "chains-00007")[1],
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_names_the_file(kind, tmp_path):
    writer = write(tmp_path)
    name = DAMAGES[kind](tmp_path / "chains-00000")
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
            with pytest.raises(CheckpointError, match="chains-00000.*not of this run"):
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
    for name in (f"chains-00000/{STATE}{UNFINISHED}", f"run.json{UNFINISHED}"):
        (run / name).symlink_to(target)
        with pytest.raises(CheckpointError, match="symbolic link"):
            if name.startswith("run"):
                writer.describe(description())
            else:
                writer.append(GROUPS[0], None, {}, state(12, 2))
        (run / name).unlink()
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
    with pytest.raises(CheckpointError, match="holds .*chains-00000.* but no run"):
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
    folder = DrawFolder(tmp_path / "draws")
    folder.describe({"identity": {"driver": "PosteriorBootstrap"}})
    folder.open()
    folder.close()
    for read in (resume, Checkpoint):
        with pytest.raises(CheckpointError, match="independent draws of a PosteriorBootstrap"):
            read(tmp_path / "draws")
    other = DrawFolder(run)
    with pytest.raises(CheckpointError, match="chains of a MCMC, wanted independent draws"):
        other.description()
    other.close()


def independent(folder, starts=(0, 2, 4)):
    opened = DrawFolder(folder)
    try:
        opened.describe({"identity": {"driver": "PosteriorBootstrap"}})
        opened.open()
        for start in starts:
            members = range(start, start + 2)
            if opened.load(members) is None:
                opened.save(members, {"x": torch.arange(start, start + 2)})
    finally:
        opened.close()


def test_independent_draws(tmp_path, subtests):
    name = "draws-00000002-00000004.safetensors"
    for kind, change in {
        "missing": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(b"12"),
        "changed": flip,
        "written anew": lambda path: write_tensors(path, {"x": torch.ones(2)}, {}),
        "extra": lambda path: shutil.copy(path.with_name(name.replace("2-", "0-", 1)), path),
        "link": lambda path: (shutil.move(path, tmp_path / "away"), path.symlink_to("away")),
    }.items():
        with subtests.test(kind):
            folder = tmp_path / kind
            independent(folder)
            independent(folder)
            bad = "draws-copy" if kind == "extra" else name
            if kind == "extra":
                shutil.copy(folder / name, folder / bad)
            else:
                change(folder / name)
            with pytest.raises(CheckpointError, match=bad):
                independent(folder)


def test_independent_draws_of_a_run_that_ended_between_draws_and_state(tmp_path):
    independent(tmp_path)
    before, last = tmp_path / STATE, tmp_path / "draws-00000004-00000006.safetensors"
    states = [read_tensors(before), read_tensors(last)]
    last.unlink()
    folder = DrawFolder(tmp_path)
    folder.describe({"identity": {"driver": "PosteriorBootstrap"}})
    with pytest.raises(CheckpointError, match=last.name):
        folder.open()
    folder.close()
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
    with pytest.raises(CheckpointError, match="is not there any more.*was moved"):
        list(writer.chunks(GROUPS[0]))
    with pytest.raises(CheckpointError, match="chains-00000 cannot be made.*was moved"):
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
