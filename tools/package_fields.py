"""Dependencies of Debian packages, from the package list of a release."""

import re
from collections.abc import Iterable, Iterator

__all__ = ["dependencies"]

_FIELD = re.compile(r"^(Package|Depends|Pre-Depends): (.*)$", re.MULTILINE)
_PACKAGE = re.compile(r"[^ (:\[]+")


def dependencies(lines: Iterable[str]) -> Iterator[tuple[str, set[str]]]:
    """Packages, and those that they depend on, alternatives as well.

    :param lines: paragraphs of fields, one for each package.

    Example::

        >>> lines = ["Package: a", "Depends: b (>= 1) | c, d:any", "", "Package: b"]
        >>> [(name, sorted(needs)) for name, needs in dependencies(lines)]
        [('a', ['b', 'c', 'd']), ('b', [])]
    """
    for entry in "\n".join(lines).split("\n\n"):
        fields = dict(_FIELD.findall(entry))
        needed = re.split(r"[,|]", f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}")
        found = (_PACKAGE.match(name.strip()) for name in needed)
        yield fields.get("Package", ""), {match.group() for match in found if match}
