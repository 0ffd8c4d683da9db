"""The scoreboard: one report on all pages, as JSON, and from it as Markdown and HTML."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyro_ext._lib.files import write_bytes
from pyro_ext.reproduction import Claim
from pyro_ext.reproduction.pages import Outcome

NAME = "scoreboard"
_TEMPLATE = Path(__file__).with_name("scoreboard.html")
_SCHEMA = 1


def write_scoreboard(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write ``scoreboard.html``, ``.md`` and ``.json``; return the path of the first.

    :param outcomes: how the pages of papers ended.
    :param Path folder: of their reports, which figures are linked in.
    """
    content = scoreboard(outcomes)
    texts = {
        "json": json.dumps(content, indent=1, allow_nan=False) + "\n",
        "md": to_markdown(content),
        "html": to_html(content),
    }
    for suffix, text in texts.items():
        write_bytes(folder / f"{NAME}.{suffix}", text.encode())
    return folder / f"{NAME}.html"


def scoreboard(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Plain values that say how pages ended, claim by claim."""
    pages = [_page(outcome) for outcome in outcomes]
    claims = [claim for page in pages for claim in page["claims"] if not page["smoke"]]
    central = [page["central"] for page in pages if page["central"] and not page["smoke"]]
    return {
        "schema": _SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": "; ".join(sorted({outcome.machine for outcome in outcomes} - {""})),
        "versions": _versions(outcomes),
        "num_pages": len(pages),
        "num_claims": len(claims),
        "num_claims_that_hold": sum(claim["holds"] for claim in claims),
        "num_central": len(central),
        "num_central_that_hold": sum(claim["holds"] for claim in central),
        "pages": pages,
    }


def to_markdown(content: dict[str, Any]) -> str:
    """The scoreboard as Markdown: a table of the pages, then one of the claims of each."""
    lines = [
        "# Scoreboard",
        "",
        _cell(summary(content)),
        "",
        "| page | central claim | bound | by seed | | all claims | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for page in content["pages"]:
        claim = page["central"] or {}
        shown = [claim.get(key, "") for key in ("statement", "inequality", "by_seed", "result")]
        shown[-1] = shown[-1].partition(":")[0]  # the reason stands below
        row = (f"[{page['slug']}](#{page['slug']})", *shown, page["verdict"], page["time"])
        lines.append(f"| {' | '.join(map(_cell, row))} |")
    for page in content["pages"]:
        lines += ["", f"## {page['slug']}", "", f"{_cell(page['paper'] or page['title'])}", ""]
        if page["reconstruction"]:
            lines += [f"A reconstruction: {_cell(page['reconstruction'])}", ""]
        if page["claims"]:
            lines += ["| claim | bound | by seed | |", "|---|---|---|---|"]
        for claim in page["claims"]:
            words = f"{claim['statement']} ({claim['source']})"
            cells = (words, claim["inequality"], claim["by_seed"], claim["result"])
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        if not page["claims"]:
            lines.append(f"{_cell(page['verdict']).capitalize()}.")
    return "\n".join(lines) + "\n"


def to_html(content: dict[str, Any]) -> str:
    """The scoreboard as one page of HTML that needs nothing else but the figures."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    return template.render(**content, summary=summary(content))


def _page(outcome: Outcome) -> dict[str, Any]:
    """Describe the result of a page."""
    report = outcome.report
    cpu_seconds = outcome.cpu_seconds
    claims = [_claim(claim, report.smoke) for claim in report.claims] if report else []
    return {
        "slug": outcome.page.slug,
        "title": outcome.page.title,
        "paper": report.paper if report else "",
        "reconstruction": report.reconstruction if report else "",
        "verdict": outcome.verdict,
        "passed": outcome.passed,
        "smoke": bool(report and report.smoke),
        "machine": outcome.machine,
        "seconds": outcome.seconds,
        "cpu_seconds": cpu_seconds,
        "time": "" if cpu_seconds is None else f"{cpu_seconds:.0f}",
        "date": report.date if report else "",
        "versions": dict(report.versions) if report else {},
        "figures": [Path(path).name for path in report.figures.values()] if report else [],  # type: ignore[arg-type]
        "claims": claims,
        "central": next((claim for claim in claims if claim["central"]), None),
    }


def _claim(claim: Claim, smoke: bool) -> dict[str, Any]:
    """Describe the result of a claim, with its inequality in words."""
    seeds = sorted(claim.values)[: 1 if claim.across == "one number" else None]
    values = [claim.values[seed] for seed in seeds]
    reason = f": {claim.reason}" if claim.reason else ""
    return {
        "statement": claim.statement,
        "source": claim.source,
        "inequality": f"{claim.across} {claim.comparison} {claim.bound:.4g}",
        "by_seed": ", ".join(f"{value:.4g}" for value in values),
        "values": {str(seed): repr(value) for seed, value in claim.values.items()},
        "holds": claim.holds,
        "reason": claim.reason or "",
        "central": claim.central,
        "result": "short run" if smoke else "holds" if claim.holds else f"**fails**{reason}",
    }


def summary(content: dict[str, Any]) -> str:
    """A sentence on the whole."""
    facts = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    found = "; ".join(filter(None, [content["date"][:10], content["machine"], facts]))
    return (
        f"{content['num_central_that_hold']} of {content['num_central']} central claims hold, and "
        f"{content['num_claims_that_hold']} of {content['num_claims']} claims of "
        f"{content['num_pages']} pages in all. A claim that fails stays, with the reason where it "
        f"is known. {found}."
    )


def _versions(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """List the versions of the libraries that the pages ran with."""
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        for name, version in outcome.report.versions.items() if outcome.report else ():
            found.setdefault(name, set()).add(version)
    return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


def _cell(text: str) -> str:
    """Text of a cell of a table, in which nothing is HTML."""
    for character, escaped in {"&": "&amp;", "<": "&lt;", "|": "\\|"}.items():
        text = text.replace(character, escaped)
    return " ".join(text.split())
