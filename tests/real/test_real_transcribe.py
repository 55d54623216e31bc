"""What is measured is what runs, on real weights and real Czech speech: the rows of evaluate, the text of transcribe."""

from pathlib import Path

import pytest
import torch

from cache.files import read_jsonl
from cache.shards import ShardReader
from stages.evaluate.run import Subject, evaluate
from stages.evaluate.settings import EvaluateSettings
from stages.prepare.corpora.fish_fillets import FishFilletsSettings
from stages.prepare.run import prepare
from stages.prepare.settings import PrepareSettings
from stages.shared.student.loading import load_model, transcribe
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.device import use_all_cores
from stages.shared.whisper.models import load_whisper

pytestmark = pytest.mark.real

WINDOW_S = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert that is a little off its shared blocks, with gates that send some tokens to either."""
    folder = tmp_path_factory.mktemp("expert")
    base = load_whisper("openai/whisper-base", WINDOW_S)
    student = DistilWhisperForConditionalGeneration.from_whisper(base.model, ["cs"])
    random = torch.Generator().manual_seed(0)
    for name, parameter in student.expert_state("cs").items():
        noise = torch.randn(parameter.shape, generator=random)
        parameter.data += (0.05 if ".gate." in name else 0.02 * float(parameter.detach().std())) * noise
    student.config.name_or_path = "openai/whisper-base"
    student.save_expert(folder, "cs")
    return folder


def test_transcribe_says_what_evaluate_measured(expert, tmp_path):
    """For each test clip of one window, in float32; the gates route in the encoder and in the decoder."""
    use_all_cores()
    out = tmp_path / "cs"
    prepare(FishFilletsSettings(corpus="fish-fillets"), PrepareSettings(), "cs", out, max_seconds=30)
    model, settings = load_model(str(expert)), EvaluateSettings(dtype="fp32")
    metrics = evaluate(model, out / "test", Subject("cs", "clsr", str(expert)), tmp_path / "clsr.json", settings, CPU)
    assert all(0.02 < share < 0.98 for share in metrics["gates"].values()), metrics["gates"]
    measured = {row["id"]: row["hypothesis"] for row in read_jsonl(tmp_path / "clsr.utterances.jsonl")}
    reader = ShardReader(out / "test", "utterances")
    rows = [row for shard in range(len(reader.shards)) for row in reader.read(shard)]
    short = [row for row in rows if row["seconds"] <= WINDOW_S and row["id"] in measured]
    assert len(short) > 100
    said = {}
    for number, row in enumerate(short):
        path = tmp_path / f"{number}.flac"
        path.write_bytes(row["audio"])
        said[row["id"]] = " ".join(one.text for one in transcribe(model, path, "cs", CPU, "fp32") if one.text)
    different = {name: (text, measured[name]) for name, text in said.items() if text != measured[name]}
    assert not different
