"""Several languages in one run: mixed batches, each row with its prompt and its expert, each language with its folder."""

import json
from pathlib import Path

import pytest
import torch
from makers import make_teacher_shards, make_utterance_shards, run
from safetensors.torch import load_file
from training import train_one

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.whisper.models import load_whisper
from stages.shared.whisper.targets import prompt_ids
from stages.train_student.data import TrainingData
from stages.train_student.loop import TrainingLoop
from stages.train_student.mixture import Mixture
from stages.train_student.run import Execution, LanguageData, train_student
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CPU = torch.device("cpu")
ROWS = {"cs": [5, 4], "gl": [3]}
FIRST = {"cs": 0, "gl": 30}


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    root = tmp_path / "data/utterances"
    for language, rows in ROWS.items():
        for number, (split, own) in enumerate({"train": rows, "validation": [2], "test": [2]}.items()):
            make_utterance_shards(root / language / split, own, split, first=FIRST[language] + 10 * number)
    return root


def mixture(corpora: Path, tiny: Path, **changes) -> Mixture:
    whisper = load_whisper(str(tiny), 1)
    return Mixture(
        [
            TrainingData(
                ShardReader(corpora / code / "train", "utterances"), None, whisper, code, TrainSettings(**changes)
            )
            for code in ROWS
        ]
    )


def recipe(**changes) -> TrainSettings:
    chosen = dict(epochs=2, batch_size=3, accumulate=2, learning_rate=3e-3, dtype="fp32", log_every=1, max_validation=2)
    return TrainSettings(**{**chosen, **changes})


def train(corpora: Path, tiny: Path, root: Path, method: str, teacher: Path | None = None, **options) -> dict:
    changes = {name: options.pop(name) for name in list(options) if name in TrainSettings.model_fields}
    sources = [
        LanguageData(code, corpora / code, teacher and teacher / code, root / code / method)
        for code in options.pop("codes", ROWS)
    ]
    out = root / "cs+gl" / method
    return train_student(load_whisper(str(tiny), 1), method, sources, out, recipe(**changes), Execution(CPU, **options))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_epoch_mixes_the_languages_and_reads_each_utterance_once(corpora, tiny_whisper):
    data = mixture(corpora, tiny_whisper)
    expected = {row["id"]: code for code in ROWS for shard in range(len(ROWS[code]))
                for row in ShardReader(corpora / code / "train", "utterances").read(shard, only=("id",))}  # fmt: skip
    epochs = [list(data.batches(3, 0, epoch)) for epoch in range(4)]
    for batches in epochs:
        read = [(id, code) for batch in batches for id, code in zip(batch.ids, batch.languages, strict=True)]
        assert len(read) == len(data) == 12
        assert dict(read) == expected
    assert any(len(set(batch.languages)) == 2 for batches in epochs for batch in batches)
    assert [batch.ids for batch in data.batches(3, 0, 1, 2)] == [batch.ids for batch in epochs[1][2:]]


def test_each_row_has_its_own_prompt(corpora, tiny_whisper):
    data = mixture(corpora, tiny_whisper)
    whisper = data.parts[0].student
    batch = next(iter(data.batches(12, 0, 0)))
    assert set(batch.languages) == {"cs", "gl"}
    assert prompt_ids(whisper, "cs") != prompt_ids(whisper, "gl")
    for inputs, language in zip(batch.decoder_input_ids, batch.languages, strict=True):
        assert inputs[:4].tolist() == prompt_ids(whisper, language)
    rows = {row["id"]: row for part in data.parts for shard in range(len(part.kept)) for row in part.load(shard)}
    assert batch.targets.tolist() == [token for id in batch.ids for token in rows[id]["targets"]]


def test_a_row_s_gradient_goes_to_its_own_expert(corpora, tiny_whisper):
    """That of a mixed batch is for each expert what its language's rows give alone, and nothing of the others'."""
    settings = recipe(skip_gate=0, expert_dropout=0, gate_noise=0, gate_weight=0, max_grad_norm=1e9)
    data = mixture(corpora, tiny_whisper)
    batch = next(iter(data.batches(12, 0, 0)))
    rows = {row["id"]: row for part in data.parts for shard in range(len(part.kept)) for row in part.load(shard)}

    def gradients(batches: list, positions: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        trainee = Trainee(load_whisper(str(tiny_whisper), 1), "clsr", list(ROWS), settings)
        for module in trainee.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        one = TrainingLoop(trainee, data, settings, torch.float32, corpora, dict, print)
        trainee.model.train()
        for each in batches:
            one._loss(each, positions, 0.0)[0].backward()
        return {name: p.grad for name, p in trainee.parameters.items()}

    together = gradients([batch], len(batch.targets))
    for code in ROWS:
        own = data.parts[0].collate([rows[id] for id, of in zip(batch.ids, batch.languages, strict=True) if of == code])
        alone = gradients([own], len(batch.targets))
        assert any(name.startswith(f"{code}.") for name in alone)
        for name, gradient in alone.items():
            if name.startswith(f"{code}."):
                torch.testing.assert_close(together[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
            else:
                assert gradient is None


def test_every_language_has_its_expert_and_the_run_its_folder(corpora, tiny_whisper, tmp_path):
    result = train(corpora, tiny_whisper, tmp_path / "models", "clsr")
    assert result["settings"]["language"] == ["cs", "gl"]
    assert (result["training_utterances"], result["validation_utterances"], result["steps"]) == (12, 4, 4)
    assert sorted(files_of(tmp_path / "models/cs+gl/clsr")) == ["curve.jsonl", "left_out.jsonl", "training.json"]
    experts = {}
    for code in ROWS:
        folder = tmp_path / "models" / code / "clsr"
        assert json.loads((folder / "experts.json").read_text())["language"] == code
        own = json.loads((folder / "training.json").read_text())
        assert own == {**result, "run": str(tmp_path / "models/cs+gl/clsr"), "model": str(folder)}
        experts[code] = load_file(folder / "experts.safetensors")
    assert experts["cs"].keys() == experts["gl"].keys()
    name = "decoder.layers.1.expert.fc2.weight"
    assert not torch.equal(experts["cs"][name], experts["gl"][name])


def test_the_mean_of_the_languages_chooses_the_best(corpora, tiny_whisper, tmp_path, monkeypatch):
    """Planted: the mean is lowest at step 2, though neither language's pooled or single rate is."""
    planted = {"cs": iter([0.5, 0.6, 0.9]), "gl": iter([0.9, 0.6, 0.5])}
    from stages.train_student import validation

    monkeypatch.setattr(
        validation,
        "validate_clips",
        lambda transcribe, clips, code, _: {"wer": next(planted[code]), "cer": 0.1, "loops": 0, "unended": 0},
    )
    result = train(corpora, tiny_whisper, tmp_path / "models", "clsr", max_steps=3, validate_every=1)
    assert (result["best_step"], result["best_validation_wer"]) == (2, 0.6)
    rows = [json.loads(line) for line in (tmp_path / "models/cs+gl/clsr/curve.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "validation_wer" in row]
    assert [row["validation_wer"] for row in measured] == pytest.approx([0.7, 0.6, 0.7])
    assert [(row["validation_wer_cs"], row["validation_wer_gl"]) for row in measured] == [
        (0.5, 0.9),
        (0.6, 0.6),
        (0.9, 0.5),
    ]


@pytest.mark.parametrize(
    ("method", "form"),
    [("clsr-kd", {}), ("lora-kd", {}), ("full", {}), ("clsr-kd", dict(expert_rank=3, gates="none"))],
)
def test_stopped_and_resumed_it_is_the_same_run(method, form, corpora, tiny_whisper, tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, total: int, losses: dict) -> None:
        if done == 3:
            raise StopError

    whisper = load_whisper(str(tiny_whisper), 1)
    teacher = tmp_path / "teacher" if method.endswith("-kd") else None
    for code in ROWS if teacher else ():
        make_teacher_shards(teacher / code, corpora / code / "train", whisper, language=code)
    whole = tmp_path / "whole"
    train(corpora, tiny_whisper, whole, method, teacher, **form)
    # the same relative folders: they are named in the results
    with pytest.raises(StopError):
        train(corpora, tiny_whisper, tmp_path / "stopped", method, teacher, progress=stop, save_every=1, **form)
    train(corpora, tiny_whisper, tmp_path / "stopped", method, teacher, save_every=1, **form)
    one, two = files_of(whole), files_of(tmp_path / "stopped")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name].replace(b"/whole/", b"/stopped/") != two[name]] == []


def test_a_language_s_other_run_is_not_overwritten(corpora, tiny_whisper, tmp_path):
    whisper = load_whisper(str(tiny_whisper), 1)
    models = tmp_path / "models"
    train_one(whisper, "clsr", "gl", corpora / "gl", None, models / "gl/clsr", recipe(max_steps=1), CPU)
    before = files_of(models)
    with pytest.raises(
        PipelineError, match=r"gl/clsr was made with other settings \(.*language: found 'gl', wanted \['cs'"
    ):
        train(corpora, tiny_whisper, models, "clsr", max_steps=1)
    assert files_of(models) == before
    train(corpora, tiny_whisper, models, "clsr", max_steps=1, rerun="update")
    done = files_of(models)
    assert train(corpora, tiny_whisper, models, "clsr", max_steps=1, progress=None) is not None
    assert files_of(models) == done
    # a language's own run takes the place of its expert: the run on both is no longer done
    whisper = load_whisper(str(tiny_whisper), 1)
    options = dict(rerun="update")
    train_one(whisper, "clsr", "gl", corpora / "gl", None, models / "gl/clsr", recipe(max_steps=1), CPU, **options)
    train(corpora, tiny_whisper, models, "clsr", max_steps=1, rerun="update")
    assert files_of(models) == done


def test_the_command_line_trains_and_evaluates(corpora, tiny_whisper, tmp_path, monkeypatch, capsys):
    """Evaluation by language finds each expert, and the one model that several languages share."""
    monkeypatch.chdir(tmp_path)
    recipe = "{batch_size: 4, accumulate: 1, max_steps: 2, max_validation: 2, lora_rank: 2}"
    Path("params.yaml").write_text(f"audio_window_s: 1\nstudent: {tiny_whisper}\ndevice: cpu\ntrain: {recipe}\n")
    methods = [word for method in ("clsr", "lora", "full") for word in ("--method", method)]
    assert run(monkeypatch, "train-student", "--lang", "cs", *methods, "--together") == 2
    assert "--together needs several languages, found cs alone" in capsys.readouterr().err
    assert run(monkeypatch, "train-student", "--lang", "cs,gl", *methods, "--together") == 0
    for method in ("clsr", "lora", "full"):
        assert run(monkeypatch, "evaluate", "--lang", "cs,gl", "--system", method) == 0
        for code in ROWS:
            metrics = json.loads(Path(f"metrics/{code}/{method}.json").read_text())
            assert metrics["model"] == f"models/{code if method == 'clsr' else 'cs+gl'}/{method}"
            assert metrics["language"] == code
    assert bool(json.loads(Path("metrics/gl/clsr.json").read_text())["gates"])
