"""Times and joined windows on real weights and real speech: clips with known places, one after the other."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from long_speech import Clip, edge_errors, one_after_the_other, without_edges, words_of

from cache.shards import ShardReader
from stages.prepare.corpora.fish_fillets import FishFilletsSettings
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.shared import scoring
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.loading import LoadedModel, load_model, transcribe
from stages.shared.whisper.decode import Transcriber, Transcript
from stages.shared.whisper.device import use_all_cores

pytestmark = pytest.mark.real

WINDOW_S, CLIPS = 4, 40


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    use_all_cores()
    out = tmp_path_factory.mktemp("utterances") / "cs"
    prepare(FishFilletsSettings(corpus="fish-fillets"), PrepareSettings(), "cs", out, max_seconds=30)
    reader = ShardReader(out / "test", "utterances")
    rows = [row for shard in range(len(reader.shards)) for row in reader.read(shard)]
    short = [row for row in rows if 1 <= row["seconds"] <= WINDOW_S]
    return [Clip(row["text"], without_edges(decode_flac(row["audio"]))) for row in short[:CLIPS]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("openai/whisper-base", WINDOW_S)


def wer(reference: str, text: str) -> float:
    return float(scoring.totals([scoring.score(reference, text, "cs")])["wer"])


def listened(model: LoadedModel, sound: np.ndarray, path: Path) -> list[Transcript]:
    soundfile.write(path, sound, SAMPLE_RATE)
    return list(transcribe(model, path, "cs", "cpu", "fp32"))


@pytest.mark.parametrize(
    ("pauses", "begins", "ends"),
    [([0.1, 0.2, 0.3, 0.5, 0.7, 1.0], (0.05, 0.3), (0.1, 0.5)), ([0.0, 0.0, 0.0, 0.3, 1.0], (0.1, 0.4), (0.15, 0.6))],
    ids=["pauses", "half without"],
)
def test_words_and_their_times(pauses, begins, ends, clips, model, tmp_path):
    """The whole is no worse than its clips, each alone; words that begin and end a clip are where the clip lies.

    begins, ends: seconds, the greatest error in the median and at 95 %.
    """
    transcriber = Transcriber(model.whisper, "cs", torch.float32)
    batches = [clips[start : start + 8] for start in range(0, len(clips), 8)]
    alone = " ".join(one.text for batch in batches for one in transcriber([clip.samples for clip in batch]))
    sound, placed = one_after_the_other(clips, pauses, seed=0)
    windows = listened(model, sound, tmp_path / "long.wav")
    text = " ".join(window.text for window in windows if window.text)
    reference = " ".join(clip.text for clip in clips)
    assert wer(reference, text) < wer(reference, alone) + 0.05
    words = words_of(windows)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= len(sound) / SAMPLE_RATE
    assert "".join(word.text for word in words).split() == text.split()
    for late, (median, most) in zip(edge_errors(placed, words, "cs"), (begins, ends), strict=True):
        assert len(late) >= 5
        assert np.median(np.abs(late)) < median
        assert np.percentile(np.abs(late), 95) < most


def test_the_language_is_czech(clips, model, tmp_path):
    said: list[str] = []
    sound, _ = one_after_the_other(clips[:12], [0.3], seed=0)
    soundfile.write(tmp_path / "long.wav", sound, SAMPLE_RATE)
    first = next(transcribe(model, tmp_path / "long.wav", None, "cpu", "fp32", warn=said.append))
    assert first.language == "cs"
    assert "detected Czech (cs), probability" in said[0]
