"""Builds the content of the report for both templates."""

from dataclasses import dataclass

from cache.storage import AnyPath
from stages.report.comparison import Comparison
from stages.report.curves import Curves, missing_curves
from stages.report.domains import Domains, domains, gate_use
from stages.report.examples import Examples, examples
from stages.report.figures import POINTS, Figure, curve_figures, gate_figures, rate_figure
from stages.report.recordings import Recordings
from stages.report.results import system_order_key
from stages.report.runs import Runs
from stages.report.sizes import SizesSection, sizes_sections
from stages.report.summary import language_title
from stages.report.tables import (
    Table,
    ending_notes,
    gates_table,
    overview_table,
    published_notes,
    published_table,
    setup_table,
    systems_table,
    unscored_notes,
)
from stages.report.trainings import training_notes, trainings_table
from stages.shared.methods import METHODS
from stages.shared.normaliser import NORMALISER, SPLIT_BY_BASIC
from stages.shared.whisper.languages import WITHOUT_SPACES

PUBLISHED = (
    "Published rates: tables 1 and 2 of Multilingual DistilWhisper (arXiv 2311.01070), which are by the basic normaliser, too. "
    "They are shown where model, audio window, language, test set, training set and its size are the paper's, and without "
    "intervals, which the tables have not. What is known to differ is listed."
)


@dataclass(frozen=True)
class CorpusSection:
    name: str  # of its files
    heading: str
    utterances: int  # that the explorer shows
    verdict: str
    systems: Table
    notes: list[str]
    published: Table | None
    published_notes: list[str]
    rate: Figure
    gates: list[Figure]
    gates_table: Table | None
    examples: Examples | None
    setup: Table


@dataclass(frozen=True)
class LanguageSection:
    code: str
    name: str
    domains: Domains | None
    corpora: list[CorpusSection]
    curves: list[Figure]
    curve_notes: list[str]
    trainings: Table | None
    training_notes: list[str]
    cache: Table | None
    cache_note: str  # where there should be one


@dataclass(frozen=True)
class Explorer:
    """The page of the utterances of a test split."""

    name: str
    language: str
    heading: str
    operations: str  # what is wrong, missing or added: words or clusters
    notes: list[str]

    @staticmethod
    def of(comparison: Comparison, recordings: Recordings) -> "Explorer":
        heading = f"{language_title(comparison.language)}, {comparison.heading}"
        operations, notes = comparison.lead.operations, recordings.notes
        return Explorer(comparison.name, comparison.language, heading, operations, notes)


@dataclass(frozen=True)
class Material:
    """What is shown, as it was read."""

    comparisons: list[Comparison]
    recordings: dict[str, Recordings]  # by the name of the comparison
    curves: Curves
    runs: Runs
    caches: dict[str, Table]  # by language
    models: AnyPath
    teacher: AnyPath


@dataclass(frozen=True)
class Page:
    title: str
    overview: Table | None
    gate_use: Table | None
    sizes: list[SizesSection]
    languages: list[LanguageSection]
    method: list[str]

    @property
    def figures(self) -> list[Figure]:
        """Each figure once, in reading order."""
        of_languages = [
            figure
            for language in self.languages
            for figures in [
                language.domains.gates if language.domains else [],
                *([c.rate, *c.gates] for c in language.corpora),
                language.curves,
            ]
            for figure in figures
        ]
        return [*(figure for section in self.sizes for figure in section.figures), *of_languages]


def make_page(title: str, material: Material, resamples: int) -> Page:
    comparisons = material.comparisons
    names = {comparison.language: language_title(comparison.language) for comparison in comparisons}
    return Page(
        title=title,
        overview=overview_table(comparisons, names) if len(comparisons) > 1 else None,
        gate_use=gate_use(comparisons, names),
        sizes=sizes_sections(comparisons, material.runs),
        languages=[_language(code, name, material) for code, name in names.items()],
        method=_method(comparisons, resamples),
    )


def _language(code: str, name: str, material: Material) -> LanguageSection:
    comparisons = [comparison for comparison in material.comparisons if comparison.language == code]
    names = {line.result.metrics.system: line.result.name for c in comparisons for line in c.lines}
    systems = sorted(names, key=system_order_key)
    trained = {system: run for system in systems if (run := material.runs.get((code, system)))}
    taught = any(system in METHODS and METHODS[system].needs_teacher for system in systems)
    return LanguageSection(
        code=code,
        name=name,
        domains=domains(comparisons),
        corpora=[_corpus(c, material.recordings.get(c.name, Recordings())) for c in comparisons],
        curves=curve_figures(material.curves, code),
        curve_notes=missing_curves(material.curves, code, systems, material.models),
        trainings=trainings_table(trained, names),
        training_notes=training_notes(trained, names),
        cache=material.caches.get(code),
        cache_note=f"The facts of the teacher's cache are left out: {material.teacher / code / 'train'} holds no shards."
        if taught and code not in material.caches
        else "",
    )


def _corpus(comparison: Comparison, recordings: Recordings) -> CorpusSection:
    return CorpusSection(
        name=comparison.name,
        heading=comparison.heading,
        utterances=len(comparison.error_spread()),
        verdict=comparison.verdict,
        systems=systems_table(comparison),
        notes=comparison.notes + recordings.notes + unscored_notes(comparison) + ending_notes(comparison),
        published=published_table(comparison),
        published_notes=published_notes(comparison),
        rate=rate_figure(comparison.name, comparison.lines, comparison.lead),
        gates=gate_figures(comparison.name, comparison.lines),
        gates_table=gates_table(comparison),
        examples=examples(comparison, recordings),
        setup=setup_table(comparison),
    )


def _method(comparisons: list[Comparison], resamples: int) -> list[str]:
    measured = [line.result.metrics for comparison in comparisons for line in comparison.lines]
    windows = " and ".join(f"{window:g} s" for window in sorted({metrics.audio_window_s for metrics in measured}))
    normalisers = " and ".join(sorted({metrics.normaliser for metrics in measured}))
    return [
        "`dvc repro` makes every number on this page again; `pipeline report` makes the page from the results.",
        f"Audio window: {windows}. It must be the same wherever two systems are compared.",
        f"Text normaliser: {normalisers}. The default one, {NORMALISER}, keeps letters, marks (so that a wrong vowel sign or "
        "tone is an error) and numbers, and an apostrophe, a middle dot or a zero-width non-joiner within a word; case is "
        "folded; punctuation, symbols, invisible characters and text in brackets go. It is also what weights are chosen by.",
        "Basic rates: by the normaliser of Whisper's authors, for comparison with the literature. It puts a space for each "
        "combining mark, so that words of many scripts fall apart, and splits "
        f"{', '.join(sorted(SPLIT_BY_BASIC))} into letters. "
        "Raw rates: texts as they are written, with case and punctuation.",
        *([PUBLISHED] if any(line.published for comparison in comparisons for line in comparison.lines) else []),
        "WER and CER are pooled: all errors over all words or characters of the references. Both can exceed 100 %.",
        f"Languages written without spaces between words ({', '.join(sorted(WITHOUT_SPACES))}) are compared by CER, without "
        "spaces. In place of words they have grapheme clusters, each a letter with its marks: a cluster error rate is no WER.",
        f"Intervals: 95 %, percentile bootstrap over utterances taken as independent, {resamples:,} resamples; differences "
        "by paired bootstrap on the same utterances (Bisani and Ney, ICASSP 2004). Below zero is better than the base. "
        "They hold for more speech like this test set, not for another training run.",
        f"Learning curves: at most {POINTS} points for a line, each the mean of its neighbours; all of them are in `curves`.",
        "Real-time factor: seconds of decoding for a second of audio, on the machine that decoded. Experts %: share of "
        "tokens that took the language's expert, mean over the layers of the encoder and of the decoder.",
    ]
