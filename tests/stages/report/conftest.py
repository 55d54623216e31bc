import json
from pathlib import Path

import pytest
from makers import make_utterance
from metrics_files import write_metrics

from cache.shards import ShardWriter
from stages.report.published import CV13
from stages.report.run import write_report
from stages.report.settings import ReportSettings
from stages.report.sources import Sources

SENTENCE = "jedna dva tři čtyři pět"


class Tree:
    """A made metrics/ and models/ tree; each utterance is SENTENCE with the first `wrong` of its words spoilt."""

    def __init__(self, root: Path):
        self.metrics, self.models, self.out = root / "metrics", root / "models", root / "report"
        self.utterances, self.teacher = root / "utterances", root / "teacher"

    @property
    def sources(self):
        return Sources(self.metrics, self.models, self.utterances, self.teacher)

    def write(self, audio_minutes=30, resamples=10, **options):
        settings = ReportSettings(audio_minutes=audio_minutes)
        return write_report(self.sources, self.out, settings, resamples=resamples, **options)

    def recordings(self, texts, language="cs", split="test", seconds=0.4, speaker="", rows=4):
        """Utterance shards of the ids that `system` gives, in shards of `rows`. Each clip is another tone."""
        records = [
            {**make_utterance(number, seconds), "id": f"u{number:02d}", "text": text, "speaker": speaker}
            for number, text in enumerate(texts)
        ]
        writer = ShardWriter(self.utterances / language / split, "utterances", {"language": language, "split": split})
        for index, start in enumerate(range(0, len(records), rows)):
            writer.write(index, records[start : start + rows])
        writer.finish()
        return records

    def system(self, system, wrong, language="cs", corpus="fish", further=False, texts=None, **changes):
        path = self.metrics / language / (f"{system}@{corpus}.json" if further else f"{system}.json")
        pairs = texts or [(SENTENCE, spoilt(count)) for count in wrong]
        return write_metrics(path, pairs, language=language, system=system, corpus=corpus, **changes)

    def run(
        self, method, language="cs", utterances=9_990, subset="10k", base="openai/whisper-small", window=30, **data
    ):
        """The facts of a run in the paper's setting, but for what is given. `changes`: settings that are not the paper's."""
        taught = {"teacher": "openai/whisper-large-v2", "targets": "reference"} if method.endswith("-kd") else {}
        corpus = {"corpus": "common-voice", "corpus_utterances": CV13[language][0], "subset": subset}
        changes = data.pop("changes", {})
        facts = {
            "settings": {
                **{"method": method, "seed": 0, "base": base, "audio_window_s": window},
                **{"batch_size": 8, "accumulate": 2, **changes},
            },
            "changes": changes,
            "data": {language: {"teacher": None, "targets": None} | corpus | taught | data},
            "training_utterances": utterances,
            **{"validation_utterances": 80, "steps": 250, "best_step": 125, "best_validation_wer": 0.5},
        }
        path = self.models / language / method / "training.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts), encoding="utf-8")
        return path

    def curve(self, method, rows, language="cs"):
        path = self.models / language / method / "curve.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def spoilt(count):
    return " ".join(["špatně"] * count + SENTENCE.split()[count:])


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)
