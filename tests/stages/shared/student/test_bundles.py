"""Bundles: experts and adapters of several languages in one folder. Each says what it says alone."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from export_makers import make_lora
from huggingface_hub import ModelCard
from makers import make_tiny_whisper, make_utterance, make_utterance_shards, run, run_captured, save_expert, speaking

from cache import files
from cache.errors import PipelineError
from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.student.bundles import METADATA
from stages.shared.student.forms import ExpertForm
from stages.shared.student.loading import LoadedModel, load_model, locate
from stages.shared.student.metadata import base_metadata
from stages.shared.student.model import DistilWhisperForConditionalGeneration as Student
from stages.shared.whisper.models import load_whisper

# Folder -> the languages that it is for. `both` is an adapter, the second of whose languages has no token of its own.
FOLDERS = {"gated": ["pl"], "low": ["gl"], "adapter": ["cs"], "both": ["nl", "gn"]}
LANGUAGES = ["pl", "gl", "cs", "nl", "gn"]


@torch.no_grad()
def make_expert(base: Path, folder: Path, language: str, form: ExpertForm, window: int = 1) -> Path:
    student = Student.from_whisper(load_whisper(str(base), window).model, [language], form).eval()
    random = torch.Generator().manual_seed(len(language) + ord(language[0]))
    for name, parameter in student.expert_state(language).items():
        if "inner.weight" not in name or form.gates == "token":
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    facts = base_metadata(str(base), student.base_parameters(), window)
    save_expert(student, language, folder, facts, "fp32")
    return folder


@pytest.fixture(autouse=True)
def one_thread_for_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take all cores otherwise, which wait for each other."""
    monkeypatch.setattr("pipeline.commands.common.use_all_cores", lambda: torch.set_num_threads(1))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that says something else for each clip; experts with gates, of low rank, and two adapters."""
    folder = tmp_path_factory.mktemp("work")
    base = make_tiny_whisper(folder / "base")
    speaking(load_whisper(str(base)), listen=20, end=2.5, seed=4).model.save_pretrained(base)
    make_expert(base, folder / "gated", "pl", ExpertForm())
    make_expert(base, folder / "low", "gl", ExpertForm(rank=2, gates="layer"))
    make_lora(base, folder / "adapter")
    make_lora(base, folder / "both", ("nl", "gn"), language_tokens={"gn": "es"})
    for name in ("gated", "adapter"):
        (folder / name / "training.json").write_text("{}")
    for number in range(2):
        soundfile.write(folder / f"{number}.wav", decode_flac(make_utterance(7 * number)["audio"]), SAMPLE_RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert bundled(patch, *FOLDERS) == 0
    return folder


def bundled(patch: pytest.MonkeyPatch, *folders: str, out: str = "bundle", base: str | None = None) -> int:
    return run(patch, "experts", "bundle", *folders, "--out", out, *(("--base", base) if base else ()))


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def batch(rows: int = 6) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 256, (rows, 7), generator=random)
    return {"input_features": torch.randn(rows, 80, 100, generator=random), "decoder_input_ids": ids}


@torch.no_grad()
def logits(model: LoadedModel, language: str | list[str]) -> torch.Tensor:
    options = {"language": language} if model.student else {}
    return model.whisper.model(**batch(), use_cache=False, **options).logits


def said(model: LoadedModel, language: str) -> list[str]:
    return [model.transcribe(f"{number}.wav", language, "cpu", "fp32").text for number in range(2)]


def test_the_layout(here):
    found = json.loads(Path("bundle", METADATA).read_text())
    whisper = load_whisper("base", 1)
    assert found["languages"] == {
        "pl": {"folder": "pl"},
        "gl": {"folder": "gl"},
        "cs": {"folder": "cs"},
        "nl": {"folder": "nl-gn"},
        "gn": {"folder": "nl-gn", "token": "es"},
    }
    assert (found["format_version"], found["audio_window_s"], found["base_dtype"]) == (1, 1, "float32")
    assert (found["base"], found["base_weights"]) == (str(here / "base"), whisper.fingerprint)
    there = {path.relative_to("bundle").as_posix() for path in Path("bundle").rglob("*") if path.is_file()}
    adapter = ("adapter_config.json", "adapter_model.safetensors", "lora.json")
    expert = ("experts.json", "experts.safetensors")
    folders = {"pl": expert, "gl": expert, "cs": adapter, "nl-gn": adapter}
    assert there == {
        "README.md",
        METADATA,
        *(f"{folder}/{name}" for folder, names in folders.items() for name in names),
    }
    for folder, source in (("pl", "gated"), ("gl", "low"), ("cs", "adapter"), ("nl-gn", "both")):
        for name in folders[folder]:
            assert Path("bundle", folder, name).read_bytes() == Path(source, name).read_bytes()
    card = ModelCard.load("bundle/README.md")
    assert card.data.language == ["pl", "gl", "cs", "nl", "gn"]
    assert "| prompt | `<|es|>` stands for Guarani |" in card.text and "go through the base's own blocks" in card.text


def test_every_language_is_bit_for_bit_what_it_is_alone(here):
    """Logits and texts; and a language without an expert is the base's."""
    model = load_model("bundle")
    assert model.student is not None
    assert list(model.languages) == model.student.languages == LANGUAGES
    assert model.student.config.language_tokens == {"gn": "es"}
    base = load_model("base", 1)
    for folder, languages in FOLDERS.items():
        alone = load_model(folder)
        for language in languages:
            assert torch.equal(logits(model, language), logits(alone, language))
            assert said(model, language) == said(alone, language)
            assert not torch.equal(logits(model, language), logits(base, language))
    assert len({tuple(said(model, language)) for language in ("pl", "gl", "cs", "de")}) == 4
    assert torch.equal(logits(model, "de"), logits(base, "de"))
    assert said(model, "de") == said(base, "de")


def test_each_row_of_a_batch_by_its_own(here):
    model = load_model("bundle")
    asked = ["pl", "gl", "cs", "de", "gn", "pl"]
    alone = {code: load_model(folder) for folder, codes in FOLDERS.items() for code in codes}
    alone["de"] = load_model("base", 1)
    mixed = logits(model, asked)
    for row, code in enumerate(asked):
        torch.testing.assert_close(mixed[row], logits(alone[code], code)[row], atol=1e-5, rtol=1e-5)
    options = dict(task="transcribe", max_new_tokens=6)
    assert model.student is not None
    rows = model.student.generate(batch()["input_features"], language=asked, **options).tolist()
    for row, code in enumerate(asked):
        own = model.student.generate(batch()["input_features"], language=code, **options)[row].tolist()
        assert rows[row][: len(own)] == own[: len(rows[row])]


def test_the_order_is_that_of_the_folders(here, monkeypatch, tmp_path):
    assert bundled(monkeypatch, "adapter", "gated", out=str(tmp_path / "two")) == 0
    assert list(load_model(str(tmp_path / "two")).languages) == ["cs", "pl"]


def test_an_expert_that_was_trained_beside_a_rounded_base(here, monkeypatch, tmp_path):
    """Its fingerprint is of the rounded weights. The bundle has those of the base as it is."""
    model = load_whisper(str(here / "base"), 1).model.to(torch.bfloat16)
    student = Student.from_whisper(model, ["hu"])
    student.save_expert(tmp_path / "half", "hu")
    half = json.loads((tmp_path / "half/experts.json").read_text())
    assert half["base_dtype"] == "bfloat16"
    for number, folders in enumerate([("gated", str(tmp_path / "half")), (str(tmp_path / "half"), "gated")]):
        assert bundled(monkeypatch, *folders, out=str(tmp_path / f"{number}")) == 0
        found = json.loads((tmp_path / f"{number}" / METADATA).read_text())
        assert (found["base_dtype"], found["base_weights"]) == ("float32", load_whisper("base", 1).fingerprint)
        assert found["base_weights_bf16"] == half["base_weights"]
        assert set(load_model(str(tmp_path / f"{number}")).languages) == {"pl", "hu"}


# Commands


def test_transcribe_and_the_language_that_is_heard(here, monkeypatch, capsys):
    by_command = run_captured(monkeypatch, capsys, "transcribe", "0.wav", "--model", "bundle", "--lang", "galician")
    alone = run_captured(monkeypatch, capsys, "transcribe", "0.wav", "--model", "low")
    assert by_command[:2] == alone[:2] and alone[1].strip()
    assert "bundle: a bundle for pl, gl, cs, nl, gn" in by_command[2].splitlines()
    status, _, err = run_captured(monkeypatch, capsys, "transcribe", "0.wav", "--model", "bundle")
    (line,) = [line for line in err.splitlines() if "detected" in line]
    assert status == 0 and "among pl, gl, cs, nl, gn, probability" in line


def test_evaluate_measures_each_language(work, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for language in ("cs", "pl"):
        make_utterance_shards(tmp_path / "data/utterances" / language / "test", [3], "test")
    Path("params.yaml").write_text("evaluate: {dtype: fp32}\n")

    def texts(model: str, name: str, *languages: str) -> list[list[str]]:
        flags = ("--model", work / model, "--name", name, "--lang", ",".join(languages))
        status, _, err = run_captured(monkeypatch, capsys, "evaluate", *flags)
        assert status == 0, err
        rows = [Path(f"metrics/{code}/{name}.utterances.jsonl").read_text().splitlines() for code in languages]
        return [[json.loads(row)["hypothesis"] for row in each] for each in rows]

    assert texts("bundle", "all", "cs", "pl") == [*texts("adapter", "own", "cs"), *texts("gated", "own", "pl")]


def test_info_tells_of_each_part(here, monkeypatch, capsys):
    status, out, _ = run_captured(monkeypatch, capsys, "experts", "info", "bundle")
    assert status == 0
    blocks = {block.splitlines()[0]: block for block in out.replace("\nbundle/", "\n\nbundle/").split("\n\n")}
    assert list(blocks) == [f"bundle/{name}" for name in ("pl", "gl", "cs", "nl-gn")]
    assert "language             pl\n" in blocks["bundle/pl"] and "fp32, full rank" in blocks["bundle/pl"]
    assert "fp32, rank 2" in blocks["bundle/gl"] and "for each layer" in blocks["bundle/gl"]
    assert "language             nl, gn under the token of es\n" in blocks["bundle/nl-gn"]
    size = Path("bundle/cs/adapter_model.safetensors").stat().st_size
    assert f"LoRA, rank 3\n  bytes                {size:,}, " in blocks["bundle/cs"]
    status, out, _ = run_captured(monkeypatch, capsys, "experts", "info", "bundle", "--json")
    assert [one["folder"] for one in json.loads(out)] == list(blocks)


@pytest.mark.parametrize("format", ["whisper", "peft", "onnx"])
def test_an_export_is_of_one_language(format, here, monkeypatch, capsys):
    status, _, err = run_captured(monkeypatch, capsys, "export", "bundle", "--to", format, "--out", "exported")
    assert status == 1
    assert err.splitlines() == [
        "pipeline: bundle: a bundle for pl, gl, cs, nl, gn: an export is of one language's folder, such as bundle/pl"
    ]
    assert not Path("exported").exists()


def test_a_part_is_a_model_by_itself(here):
    assert torch.equal(logits(load_model("bundle/pl"), "pl"), logits(load_model("gated"), "pl"))


def test_a_bundle_in_a_store(here, monkeypatch):
    """Written to a URL and read from it, with its folders."""
    assert bundled(monkeypatch, "gated", "adapter", out="memory://bundles/two") == 0
    found = locate("memory://bundles/two")
    assert (found.kind, found.languages) == ("bundle", ["pl", "cs"])
    model = load_model(found)
    assert torch.equal(logits(model, "cs"), logits(load_model("adapter"), "cs"))
    with pytest.raises(PipelineError, match="holds files already"):
        files.refuse_taken(found.folder)


# What is refused


@pytest.fixture
def places(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the work in which a test may break things."""
    shutil.copytree(work, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """The one line of the error. Nothing is written."""
    before = sorted(Path().rglob("*"))
    status, out, err = run_captured(monkeypatch, capsys, "experts", "bundle", *arguments, "--out", "new")
    assert (status, out) == (1, "")
    assert sorted(Path().rglob("*")) == before
    (line,) = err.splitlines()
    return line.removeprefix("pipeline: ")


def test_what_does_not_go_together(places, monkeypatch, capsys):
    make_tiny_whisper(places / "else", seed=5)
    make_expert(places / "else", places / "stranger", "hu", ExpertForm())
    make_expert(places / "base", places / "wide", "hu", ExpertForm(), window=2)
    make_expert(places / "base", places / "dutch", "nl", ExpertForm())
    (places / "published").mkdir()
    (places / "published/expert.catalan.bin").write_bytes(b"")
    for folders, text in {
        ("gated", "gated"): "gated: it is for pl, as gated is: expected one folder for each language",
        ("both", "dutch"): "dutch: it is for nl, as both is: expected one folder for each language",
        ("gated", "wide"): "wide: trained with audio_window_s 2, but gated with 1: a bundle has one window",
        ("gated", "base"): "base: a whole Whisper, expected experts or an adapter: it cannot share a base; use it by",
        ("bundle", "gated"): "bundle: a bundle itself: give the folders in it, such as bundle/pl",
        ("gated", "published"): "published: published experts: bring them in first with `pipeline experts import`",
        ("gated", "nothing"): "nothing: no such folder, and not a hub id (owner/name)",
    }.items():
        assert refused(monkeypatch, capsys, *folders).startswith(text)
    line = refused(monkeypatch, capsys, "gated", "stranger")
    assert (
        line.startswith("stranger/experts.json: trained on base weights ")
        and "; the bundle's base is that of gated" in line
    )


def test_an_adapter_that_changes_other_layers_as_well(places, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_whisper("base").model, LoraConfig(r=3, target_modules=["fc1", "q_proj"]))
    adapted.save_pretrained(places / "theirs")
    line = refused(monkeypatch, capsys, "gated", "theirs")
    assert line.startswith("theirs: an adapter of another program: no lora.json in it names its language")
    shutil.copy(places / "adapter/lora.json", places / "theirs")
    assert "q_proj.lora_A.weight': expected the factors of fc1 and fc2" in refused(
        monkeypatch, capsys, "gated", "theirs"
    )


def test_a_place_that_is_taken(places, monkeypatch, capsys):
    for out, text in {"bundle": "bundle: holds files already", "0.wav": "0.wav: a file, expected a new folder"}.items():
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        status, _, err = run_captured(monkeypatch, capsys, "experts", "bundle", "gated", "--out", out)
        assert status == 1 and err.startswith(f"pipeline: {text}")
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_nothing_is_left_of_a_bundle_that_fails(places, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.shared.student.bundles.files.write_json", full)
    before = sorted(Path().rglob("*"))
    assert bundled(monkeypatch, "gated", "low", out="new") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_base_that_lies_elsewhere(places, monkeypatch, capsys):
    """All folders name the base of the first work, which is gone; the copy has the same weights."""
    for file in Path().glob("*/*.json"):
        if file.name in ("experts.json", "lora.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "base": "gone/whisper"}))
    assert "its base cannot be found: gone/whisper: " in refused(monkeypatch, capsys, "gated", "adapter")
    assert bundled(monkeypatch, "gated", "adapter", out="new", base="base") == 0
    assert json.loads(Path("new", METADATA).read_text())["base"] == "gone/whisper"
    assert load_model("new", base="base").languages == ["pl", "cs"]
    with pytest.raises(PipelineError, match="its base cannot be found"):
        locate("new")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format_version is 2, expected 1"),
        ({"languages": ["cs"]}, r"languages is \['cs'\], expected an object"),
        ({"languages": {}}, "languages is empty"),
        ({"languages": {"cs": {"folder": "../adapter"}}}, "expected the name of a folder beside this file"),
        ({"languages": {"cs": "cs"}}, "'cs' is 'cs', expected the name of a folder"),
        ({"languages": {"czech": {"folder": "cs"}}}, "'czech' is no code of a language, expected 'cs'"),
        ({"languages": {"hu": {"folder": "cs"}}}, "cs: holds experts for cs: expected one of them, found hu"),
        ({"languages": {"gn": {"folder": "nl-gn"}}}, "the token of gn is None, but nl-gn has 'es': damaged"),
        ({"languages": {"cs": {"folder": "gone"}}}, r"gone/experts\.json: no such file"),
        ({"base_weights": "0" * 64}, "trained on base weights 000000000000, but this model has"),
    ],
    ids=str,
)
def test_a_damaged_description(changes, text, places):
    path = Path("bundle", METADATA)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(PipelineError, match=text):
        load_model("bundle")
