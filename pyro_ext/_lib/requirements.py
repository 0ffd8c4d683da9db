"""Requirements of an installed distribution and whether they are met, from its metadata."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # of modules with another name than theirs


@dataclass(frozen=True)
class Finding:
    """A requirement and what is installed for it."""

    name: str  # name of the required distribution
    wanted: str  # its allowed versions, such as ">=1.5"; empty if any version is allowed
    extras: str  # its required extras, such as "[distributed]"; or empty
    installed: str | None  # the installed version, None if it is not installed
    fits: bool  # whether that version is allowed

    @property
    def state(self) -> Literal["ok", "missing", "wrong version"]:
        """Status of the requirement."""
        if self.fits:
            return "ok"
        return "missing" if self.installed is None else "wrong version"


def extras(distribution: str) -> list[str]:
    """Names of the extras that a distribution offers, in its order."""
    return list(metadata.metadata(distribution).get_all("Provides-Extra") or [])


def findings(distribution: str, extra: str | None = None) -> list[Finding]:
    """Look up what a distribution requires."""
    return list(dict.fromkeys(_findings(distribution, extra, set())))


def extra_with(distribution: str, module: str) -> str | None:
    """The first extra of an installed distribution that installs a module, if one does."""
    wanted = canonicalize_name(_DISTRIBUTIONS.get(module, module))
    try:
        for extra in extras(distribution):
            names = {canonicalize_name(found.name) for found in findings(distribution, extra)}
            if wanted in names:
                return extra
    except metadata.PackageNotFoundError:
        pass
    return None


def pip_line(unmet: Iterable[Finding]) -> str:
    """Command that installs what is missing."""
    wanted = (shlex.quote(finding.name + finding.extras + finding.wanted) for finding in unmet)
    return "python -m pip install " + " ".join(wanted)


def _findings(
    distribution: str, extra: str | None, seen: set[tuple[str, str | None]]
) -> Iterator[Finding]:
    key = (canonicalize_name(distribution), extra)
    if key in seen:  # extras may refer to each other
        return
    seen.add(key)
    for requirement in map(Requirement, metadata.requires(distribution) or []):
        if not _applies(requirement, extra):
            continue
        finding = _look_up(requirement)
        if canonicalize_name(requirement.name) != key[0]:
            yield finding
        if finding.installed is not None:
            for name in sorted(requirement.extras):
                yield from _findings(requirement.name, name, seen)


def _applies(requirement: Requirement, extra: str | None) -> bool:
    """Tell whether a requirement belongs to the extra, or without an extra, always applies."""
    if requirement.marker is None:
        return extra is None
    always = requirement.marker.evaluate({"extra": ""})
    if extra is None:
        return always
    return not always and requirement.marker.evaluate({"extra": extra})


def _look_up(requirement: Requirement) -> Finding:
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        installed = None
    fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
    names = ",".join(sorted(requirement.extras))
    return Finding(
        requirement.name, str(requirement.specifier), f"[{names}]" if names else "", installed, fits
    )
