"""Reads results and learning curves and writes the report."""

import re
from html import escape
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from cache.errors import PipelineError
from cache.files import write_json, write_text
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.storage import AnyPath, remove_tree
from stages.report.cache_facts import cache_table
from stages.report.comparison import Comparison, as_numbers, compare
from stages.report.curves import curve_csv, read_curves
from stages.report.marks import shown
from stages.report.page import Explorer, Material, Page, make_page
from stages.report.recordings import Recordings, copy_recordings
from stages.report.results import read_results
from stages.report.runs import read_runs
from stages.report.settings import ReportSettings
from stages.report.sources import Sources
from stages.report.summary import format_summary
from stages.report.tables import Table
from stages.report.utterances import explorer_data

__all__ = ["Sources", "format_summary", "write_report"]

TITLE, RESAMPLES, DEFAULTS = "Speech recognition report", 10_000, ReportSettings()


def write_report(
    sources: Sources,
    out: AnyPath,
    settings: ReportSettings = DEFAULTS,
    progress: Progress[str] = silent,
    title: str = TITLE,
    resamples: int = RESAMPLES,
) -> AnyPath:
    """Writes the report to the folder `out`, and returns its index.html. docs/report.md lists the files.

    progress: is called with the utterances that are written, those of all test splits, and the name of the split.
    """
    results, curves, runs = read_results(sources.metrics), read_curves(sources.models), read_runs(sources.models)
    comparisons = compare(results, runs, resamples)
    _check_names(comparisons)
    with sole_writer(out):
        recordings = _write_utterances(comparisons, sources, out, settings.audio_minutes, progress)
        caches = _read_caches(comparisons, sources.teacher, progress)
        material = Material(comparisons, recordings, curves, runs, caches, sources.models, sources.teacher)
        page = make_page(title, material, resamples)
        _replace(out / "figures", ".svg", {figure.name: figure.file for figure in page.figures})
        _replace(out / "curves", ".csv", {f"{lang}-{method}": curve_csv(c) for (lang, method), c in curves.items()})
        write_json(out / "comparison.json", as_numbers(comparisons, title, resamples))
        write_text(out / "report.md", _rendered("report.md.jinja", page=page))
        write_text(out / "index.html", _rendered("report.html.jinja", page=page))
    return out / "index.html"


def _check_names(comparisons: list[Comparison]) -> None:
    seen: dict[str, Comparison] = {}
    for comparison in comparisons:
        other = seen.setdefault(comparison.name, comparison)
        if other is not comparison:
            raise PipelineError(
                f"the test corpora {other.corpus!r} and {comparison.corpus!r} of {comparison.language} would both be "
                f"called {comparison.name} in the report: give one another name in further_tests"
            )


def _read_caches(comparisons: list[Comparison], teacher: AnyPath, progress: Progress[str]) -> dict[str, Table]:
    """Returns the facts of each language's teacher shards, where there are any."""
    languages = dict.fromkeys(comparison.language for comparison in comparisons)
    found = {language: cache_table(teacher / language / "train", progress) for language in languages}
    return {language: table for language, table in found.items() if table}


def _write_utterances(
    comparisons: list[Comparison], sources: Sources, out: AnyPath, minutes: float, progress: Progress[str]
) -> dict[str, Recordings]:
    """Writes recordings and a page for each test split. Returns the recordings by the name of the comparison.

    Those of an earlier report are removed first.
    """
    pages, audio = out / "utterances", out / "audio"
    for folder in (pages, audio):
        if folder.is_dir():
            remove_tree(folder)
    scored = [comparison for comparison in comparisons if comparison.scored]
    done, total, recordings = 0, sum(len(comparison.error_spread()) for comparison in scored), {}
    for comparison in scored:
        progress(done, total, comparison.name)
        found = copy_recordings(comparison, sources.utterances, audio / comparison.name, minutes)
        before, name, recordings[comparison.name] = done, comparison.name, found
        for done, script, text in explorer_data(comparison, found):
            write_text(pages / name / f"{script}.js", text)
            progress(before + done, total, name)
        done += before
        write_text(pages / f"{name}.html", _rendered("explorer.html.jinja", explorer=Explorer.of(comparison, found)))
    if scored:
        write_text(pages / "explorer.js", (files("stages.report") / "explorer.js").read_text(encoding="utf-8"))
    return recordings


def _replace(folder: AnyPath, ending: str, texts: dict[str, str]) -> None:
    """Writes the files, and removes those of systems that are no longer there."""
    for path in folder.glob(f"*{ending}"):
        if path.name.removesuffix(ending) not in texts:
            path.unlink(missing_ok=True)
    for name, text in texts.items():
        write_text(folder / f"{name}{ending}", text)


def _rendered(template: str, **values: Page | Explorer) -> str:
    environment = Environment(
        loader=PackageLoader("stages.report", "."),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"md": markdown_text, "code": code_spans, "unbroken": unbroken, "shown": shown}
    return environment.get_template(template).render(**values)


def markdown_text(text: str) -> str:
    """Returns `text` on one line, with the special characters of Markdown and HTML escaped."""
    return escape(re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", " ".join(text.split())), quote=False)


def unbroken(heading: str) -> str:
    """Returns a heading that wraps between words, but not before a unit, around a slash or at a hyphen."""
    return heading.replace(" %", "\u00a0%").replace(" / ", "\u00a0/\u00a0").replace("-", "\u2011")


def code_spans(text: str) -> str:
    """Turns `word` into <code>word</code> and escapes all else. Use it only for our own sentences."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
