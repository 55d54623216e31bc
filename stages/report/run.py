"""Reads results and learning curves and writes the report."""

import re
from html import escape

from jinja2 import Environment, PackageLoader, StrictUndefined

from cache.files import write_json, write_text
from cache.locks import sole_writer
from cache.storage import AnyPath
from stages.report.comparison import as_numbers, compare
from stages.report.curves import curve_csv, read_curves
from stages.report.page import Page, make_page
from stages.report.results import read_results
from stages.report.runs import read_runs
from stages.report.summary import format_summary

__all__ = ["format_summary", "write_report"]


def write_report(
    metrics: AnyPath, models: AnyPath, out: AnyPath, title: str = "Speech recognition report", resamples: int = 10_000
) -> AnyPath:
    """Writes index.html, report.md, figures/*.svg, curves/*.csv and comparison.json to `out`. Returns index.html."""
    results, curves, runs = read_results(metrics), read_curves(models), read_runs(models)
    comparisons = compare(results, runs, resamples)
    page = make_page(title, comparisons, curves, runs, models, resamples)
    with sole_writer(out):
        _replace(out / "figures", ".svg", {figure.name: figure.file for figure in page.figures})
        _replace(out / "curves", ".csv", {f"{lang}-{method}": curve_csv(c) for (lang, method), c in curves.items()})
        write_json(out / "comparison.json", as_numbers(comparisons, title, resamples))
        write_text(out / "report.md", _rendered("report.md.jinja", page))
        write_text(out / "index.html", _rendered("report.html.jinja", page))
    return out / "index.html"


def _replace(folder: AnyPath, ending: str, texts: dict[str, str]) -> None:
    """Writes the files, and removes those of systems that are no longer there."""
    for path in folder.glob(f"*{ending}"):
        if path.name.removesuffix(ending) not in texts:
            path.unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(folder / f"{name}{ending}", text)


def _rendered(template: str, page: Page) -> str:
    environment = Environment(
        loader=PackageLoader("stages.report", "."),
        autoescape=template.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"md": markdown_text, "code": code_spans, "unbroken": unbroken}
    return environment.get_template(template).render(page=page)


def markdown_text(text: str) -> str:
    """Returns `text` on one line, with the special characters of Markdown and HTML escaped."""
    return escape(re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", " ".join(text.split())), quote=False)


def unbroken(heading: str) -> str:
    """Returns a heading that wraps between words, but not before a unit, around a slash or at a hyphen."""
    return heading.replace(" %", "\u00a0%").replace(" / ", "\u00a0/\u00a0").replace("-", "\u2011")


def code_spans(text: str) -> str:
    """Turns `word` into <code>word</code> and escapes all else. Use it only for our own sentences."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
