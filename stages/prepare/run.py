"""Reads a corpus, decodes every recording once, and writes `<out>/<split>/` as utterance shards."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from cache import files, storage
from cache.errors import PipelineError
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.resume import Rerun
from cache.shards import LEFT_OUT, MANIFEST, NOTICED, PROGRESS, ShardReader, ShardWriter
from cache.storage import AnyPath
from stages.prepare.contents import combined_sha256, contents_sha256
from stages.prepare.corpora import read_corpus
from stages.prepare.items import SPLITS, Corpus, Item, transcripts_sha256
from stages.prepare.settings import CorpusSettings, PrepareSettings
from stages.prepare.unread import discard_if_readable_now
from stages.prepare.unusable import nothing_usable
from stages.prepare.utterances import Listed, Made, as_duplicate, make_utterance

# Raise this whenever the same corpus and settings give other records: work of another version is made again.
PREPARE_VERSION = 2
KIND = "utterances"
LIMITS = {"min_seconds", "max_missing_seconds", "max_clipped", "max_characters_per_second"}
THREADS = 4  # the most; decoding, resampling and FLAC release the interpreter lock


@dataclass(frozen=True)
class SplitSummary:
    split: str
    folder: AnyPath
    utterances: int
    seconds: float
    left_out: dict[str, int]  # by reason
    noticed: dict[str, int]  # by reason: utterances that are kept although they were corrected or are doubtful
    not_selected: int
    notes: list[str]  # of the corpus as a whole


def prepare(
    corpus_settings: CorpusSettings,
    settings: PrepareSettings,
    language: str,
    out: AnyPath,
    max_seconds: float,
    rerun: Rerun = "refuse",
    split_suffix: str = "",
    progress: Progress[float] = silent,
) -> list[SplitSummary]:
    """Writes `<out>/train`, `validation` and `test`, as far as the corpus has them. Finished work is not done again.

    out: the language's folder. max_seconds: the audio window; train and validation hold nothing longer, test does.
    split_suffix: for a further test corpus, "@fleurs"; then only `<out>/test@fleurs` is written.
    Raises PipelineError where a split has nothing usable, or if `rerun` is `refuse` and the folder was made otherwise.
    """
    corpus = _read(corpus_settings, language, ("test",) if split_suffix else SPLITS)
    with sole_writer(out), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            contents = _contents(corpus, out.with_name(out.name + split_suffix), pool, progress)
            if not split_suffix:
                _discard_foreign_splits(corpus, corpus_settings.name, out, rerun)
            # Every folder is opened before any work is done: a refusal then comes at once.
            writers = {
                split + split_suffix: ShardWriter(
                    out / (split + split_suffix), KIND, provenance, settings.format, rerun
                )
                for split, provenance in _provenance(
                    corpus, contents, corpus_settings, settings, language, max_seconds
                ).items()
            }
            work = _Work(corpus, corpus_settings.name, language, settings, max_seconds, writers, progress)
            parts = [(work.writers[s + split_suffix], items, work.maker(s)) for s, items in corpus.splits.items()]
            discard_if_readable_now(parts, rerun, pool)
            return [work.split(split, split + split_suffix, pool) for split in SPLITS if split in corpus.splits]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read(settings: CorpusSettings, language: str, wanted: tuple[str, ...]) -> Corpus:
    corpus = read_corpus(settings, language, wanted)
    if not corpus.splits:
        what = "test split" if wanted == ("test",) else "splits"
        raise PipelineError(f"corpus {settings.name} has no {what}: {'; '.join(corpus.notes) or 'choose another'}")
    path = settings.model_dump(mode="json").get("path")
    return replace(corpus, facts={**({"path": path} if path else {}), **corpus.facts})


def _contents(
    corpus: Corpus, out: AnyPath, pool: ThreadPoolExecutor, progress: Progress[float]
) -> dict[str, list[str | None]]:
    """Returns for each split the hash of each item's recording."""
    items = [item for split in corpus.splits.values() for item in split]
    progress(0, len(items), 0.0)
    found = iter(contents_sha256(items, out, pool))
    return {split: list(islice(found, len(own))) for split, own in corpus.splits.items()}


def _discard_foreign_splits(corpus: Corpus, name: str, out: AnyPath, rerun: Rerun) -> None:
    """Removes splits that this corpus lacks: another corpus left them, and they would be trained or tested on.

    Raises PipelineError if `rerun` is `refuse` and there is such a split.
    """
    for folder in (out / split for split in SPLITS if split not in corpus.splits):
        if (folder / MANIFEST).exists() or (folder / PROGRESS).exists():
            if rerun == "refuse":
                why = f" ({'; '.join(corpus.notes)})" if corpus.notes else ""
                raise PipelineError(
                    f"{folder} was made from another corpus, {name} has no such split{why}: "
                    "give --update or --restart to remove it, or another folder"
                )
            storage.remove_tree(folder)


def _provenance(
    corpus: Corpus,
    contents: dict[str, list[str | None]],
    corpus_settings: CorpusSettings,
    settings: PrepareSettings,
    language: str,
    max_seconds: float,
) -> dict[str, dict[str, Any]]:
    """Returns all that each split's shards depend on, in the order of preparation."""
    corpus_values = corpus_settings.model_dump(mode="json")
    result, before = {}, ""
    for split in (split for split in SPLITS if split in corpus.splits):
        transcripts, recordings = transcripts_sha256(corpus.splits[split]), combined_sha256(contents[split])
        result[split] = {
            "prepare_version": PREPARE_VERSION,
            "language": language,
            "split": split,
            "corpus": corpus_values["corpus"],
            # without the corpus' path: the two hashes below cover its content, wherever it is
            **{f"corpus.{name}": value for name, value in corpus_values.items() if name not in ("corpus", "path")},
            **settings.model_dump(mode="json", include=LIMITS),
            "untranscribed": split == "train" and settings.untranscribed,
            "max_seconds": _longest(split, max_seconds),
            "shard_rows": settings.shard_rows,
            "transcripts": transcripts,
            "recordings": recordings,
            "splits_before": before,  # a recording that is also in an earlier split is left out of this one
        }
        before += transcripts + recordings
    return result


def _longest(split: str, max_seconds: float) -> float | None:
    # Test keeps every length: without its long utterances the result would look better. Evaluation decodes by windows.
    return None if split == "test" else max_seconds


class _Work:
    """Prepares one corpus, split after split, test first: of duplicate recordings the one in test is kept."""

    def __init__(
        self,
        corpus: Corpus,
        name: str,
        language: str,
        settings: PrepareSettings,
        max_seconds: float,
        writers: dict[str, ShardWriter],
        progress: Progress[float],
    ):
        self.corpus, self.name, self.language, self.settings = corpus, name, language, settings
        self.max_seconds, self.writers, self.progress = max_seconds, writers, progress
        self.done, self.total = 0, sum(map(len, corpus.splits.values()))
        self.seconds = 0.0
        self.first_with_audio: dict[str, str] = {}  # audio_sha256 -> the first utterance with it, as "split/id"

    def split(self, split: str, label: str, pool: ThreadPoolExecutor) -> SplitSummary:
        items, writer = self.corpus.splits[split], self.writers[label]
        manifest = self._finished(label, items) if writer.complete else self._make(split, label, items, pool)
        counts = manifest["left_out"], manifest["noticed"], manifest["not_selected"]
        return SplitSummary(label, writer.folder, manifest["rows"], manifest["seconds"], *counts, self.corpus.notes)

    def _finished(self, label: str, items: list[Item]) -> dict[str, Any]:
        reader = ShardReader(self.writers[label].folder, KIND)
        if not all(writer.complete for writer in self.writers.values()):
            for index in range(len(reader.shards)):
                self._remember_audio(label, reader.read(index))
        self._advance(len(items), reader.manifest["seconds"])
        return reader.manifest

    def _make(self, split: str, label: str, items: list[Item], pool: ThreadPoolExecutor) -> dict[str, Any]:
        writer, rows = self.writers[label], self.settings.shard_rows
        for index, start in enumerate(range(0, len(items), rows)):
            shard = items[start : start + rows]
            if index in writer.shards:
                entry = writer.shards[index]
                self._remember_audio(label, writer.read(index))
                self._advance(len(shard), entry["seconds"])
            else:
                records, lists = self._make_shard(split, label, shard, pool)
                writer.write(index, records, seconds=sum((record["seconds"] for record in records), 0.0), **lists)
        return self._finish(split, label, items)

    def maker(self, split: str) -> Callable[[Item], Made | Listed]:
        longest = _longest(split, self.max_seconds)
        return partial(make_utterance, settings=self.settings, split=split, max_seconds=longest)

    def _make_shard(
        self, split: str, label: str, items: list[Item], pool: ThreadPoolExecutor
    ) -> tuple[list[dict], dict[str, list[dict]]]:
        """Returns the records, and the lines for left_out.jsonl and noticed.jsonl."""
        make = self.maker(split)
        records: list[dict] = []
        left_out: list[Listed] = []
        noticed: list[Listed] = []
        for result in pool.map(make, items):
            if isinstance(result, Made) and (first := self.first_with_audio.get(result.record["audio_sha256"])):
                result = as_duplicate(result.record, first)
            if isinstance(result, Listed):
                left_out.append(result)
                self._advance(1, 0.0)
            else:
                records.append(result.record)
                noticed += result.noticed
                self._remember_audio(label, [result.record])
                self._advance(1, result.record["seconds"])
        return records, {"left_out": list(map(asdict, left_out)), "noticed": list(map(asdict, noticed))}

    def _remember_audio(self, label: str, records: list[dict]) -> None:
        self.first_with_audio.update({record["audio_sha256"]: f"{label}/{record['id']}" for record in records})

    def _advance(self, items: int, seconds: float) -> None:
        self.done += items
        self.seconds += seconds
        self.progress(self.done, self.total, self.seconds)

    def _finish(self, split: str, label: str, items: list[Item]) -> dict[str, Any]:
        """Writes the lists, then the manifest, and returns it. Raises PipelineError where no utterance is left."""
        writer = self.writers[label]
        entries = [writer.shards[index] for index in sorted(writer.shards)]
        # In progress.json each shard's entry holds its lists. In a finished folder each list is a file of its own.
        lists = {name: [row for entry in entries for row in entry[name]] for name in ("left_out", "noticed")}
        counts = {name: dict(sorted(Counter(row["reason"] for row in rows).items())) for name, rows in lists.items()}
        files.write_jsonl(writer.folder / LEFT_OUT, lists["left_out"])
        files.write_jsonl(writer.folder / NOTICED, lists["noticed"])
        if not any(entry["rows"] for entry in entries):
            where = f"corpus {self.name}, {label}"
            raise PipelineError(nothing_usable(where, items, lists["left_out"], writer.folder / LEFT_OUT))
        for entry in entries:
            del entry["left_out"], entry["noticed"]
        return writer.finish(
            corpus=self.name,
            corpus_facts=self.corpus.facts,
            language=self.language,
            split=label,
            seconds=sum(entry["seconds"] for entry in entries),
            **counts,
            not_selected=self.corpus.not_selected.get(split, 0),
        )
