"""Formulas as MathML, which browsers draw themselves: no script, and nothing to fetch."""

import re
from html import escape, unescape
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _NAMESPACE)


def to_mathml(node: nodes.Element, text: str, as_block: bool) -> str:
    """A formula of LaTeX as MathML, or as it is with a warning where that is not known."""
    # Delimiters grow by themselves, and sums are small where they should be.
    known = re.sub(r"\\([bB]igg?[lr]?|textstyle)(?![a-zA-Z])", "", text)
    known = known.replace(r"\dots", r"\ldots")
    try:
        return _with_subscripts(latex2mathml.tex2mathml(known, as_block=as_block))
    except (MathError, AttributeError) as error:
        logging.getLogger(__name__).warning("%s: %s", error, text, location=node)
        return f"<code>{escape(text)}</code>"


def _with_subscripts(formula: str) -> str:
    """Put the subscript of a symbol with an accent to its right, where docutils puts it below."""
    # Names of characters that HTML knows and XML does not.
    formula = re.sub(r"&(?!(?:amp|lt|gt|quot|apos);)\w+;", lambda name: unescape(name[0]), formula)
    root = ElementTree.fromstring(formula)
    for found in list(root.iter(f"{{{_NAMESPACE}}}munderover")):
        symbol, subscript, above = found
        if above.get("accent") or above.get("stretchy"):
            found.tag = f"{{{_NAMESPACE}}}msub"
            found.clear()
            accented = ElementTree.SubElement(found, f"{{{_NAMESPACE}}}mover", accent="true")
            accented.extend((symbol, above))
            found.append(subscript)
    return ElementTree.tostring(root, "unicode")


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Write a formula within a line."""
    translator.body.append(to_mathml(node, node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_displaymath(translator: Any, node: nodes.Element) -> None:
    """Write a formula that stands alone, in lines where blank lines or ``&`` ask for them."""
    text = "\\\\ ".join(filter(None, map(str.strip, node.astext().split("\n\n"))))
    if r"\begin" not in text and ("&" in text or r"\\" in text):
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    formula = to_mathml(node, text, as_block=True)
    translator.body.append(f'<div class="math-wrapper">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make it known to Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
