"""`pipeline push` against a stand-in of the hub's API: what is shown, what is sent, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from export_makers import make_experts, make_lora
from hub import Hub, serving, use
from huggingface_hub import ModelCard
from makers import make_utterance, run_captured
from metrics_files import write_metrics

from stages.shared.audio import decode_flac
from stages.shared.scoring import NORMALISER
from stages.shared.student.loading import load_model

REPOSITORY = "someone/whisper-cs"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with serving(tmp_path / "hub") as found:
        use(monkeypatch, found, tmp_path / "home")
        yield found


@pytest.fixture
def adapter(tiny_whisper: Path, hub: Hub) -> Path:
    """A folder as a training leaves it, with rates that `evaluate` has found for it and for its base."""
    shutil.copytree(tiny_whisper, hub.repository("someone/base"), dirs_exist_ok=True)
    folder = make_lora(tiny_whisper, Path("models/cs/lora"))
    facts = json.loads((folder / "lora.json").read_text())
    (folder / "lora.json").write_text(json.dumps(facts | {"base": "someone/base"}))
    (folder / "curve.jsonl").write_text('{"step": 1}\n')
    (folder / "left_out.jsonl").write_text('{"id": "secret/recording"}\n')
    measured("lora", str(folder), 1)
    measured("base-30s", "someone/base", 3)
    measured("other", "models/cs/other", 4)
    return folder


def measured(system: str, model: str, wrong: int, language: str = "cs") -> Path:
    """Plants metrics of four texts, in each of which `wrong` of four words are wrong."""
    words = ["jedna", "dva", "tři", "čtyři"]
    texts = [(" ".join(words), " ".join(["ne"] * wrong + words[wrong:]))] * 4
    facts = {
        "audio_window_s": 1,
        "loops": 1,
        "unended": 2,
        "gates": {"encoder.layers.0": 0.25, "decoder.layers.0": 0.75},
    }
    path = Path("metrics") / language / f"{system}.json"
    return write_metrics(path, texts, language=language, model=model, corpus="made", **facts)


def push(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    return run_captured(monkeypatch, capsys, "push", *arguments)


def test_it_sends_the_model_and_its_card_and_nothing_of_the_training(adapter, hub, monkeypatch, capsys):
    status, out, error = push(
        monkeypatch, capsys, str(adapter), REPOSITORY, "--yes", "--licence", "cc-by-4.0", "--message", "First words"
    )
    assert status == 0, error
    sent = hub.files(REPOSITORY)
    assert sent is not None
    assert sent.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors", "lora.json"}
    for name in sent.keys() - {"README.md"}:
        assert sent[name].read_bytes() == (adapter / name).read_bytes()
        assert f"  {(adapter / name).stat().st_size:>14,}  {name}" in out
    assert hub.messages == ["First words"]
    assert not hub.created_private
    assert "not sent, of the training alone: curve.jsonl, left_out.jsonl" in out
    assert f"to {REPOSITORY} (new):" in out
    shown = out.partition("this card:\n\n")[2]
    assert all(f"    {line}" in shown for line in sent["README.md"].read_text().splitlines() if line)


def test_the_card_has_the_rates_their_intervals_and_the_base_beside_them(adapter, hub, monkeypatch, capsys):
    """Bootstrap intervals of rows that are all alike are points."""
    assert push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes", "--licence", "cc-by-4.0")[0] == 0
    card = ModelCard.load(hub.root / REPOSITORY / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("cc-by-4.0", ["cs"], "someone/base")
    results = {one.metric_type: one for one in card.data.eval_results}
    assert results.keys() == {"wer", "cer"}
    assert results["wer"].metric_value == 25.0
    assert results["wer"].metric_args == {
        "confidence_interval_95": [25.0, 25.0],
        "normaliser": NORMALISER,
        "window": "1 s",
    }
    assert (results["cer"].dataset_config, results["cer"].dataset_split) == ("cs", "test")
    assert (
        "| **this model** | cs | made | test | 4 | 25.0 (25.0 to 25.0) | 21.1 (21.1 to 21.1) | 1 s | float32 |"
        in card.text
    )
    assert "| base-30s, not trained | cs | made | test | 4 | 75.0 | 52.6 | 1 s | float32 |" in card.text
    assert "of 4 texts 1 repeated themselves, and 2 did not end" in card.text
    assert "25 % of the tokens in the encoder's layers, 75 % of the tokens in the decoder's" in card.text
    assert "100.0" not in card.text and 'load_model("someone/whisper-cs")' in card.text


@pytest.mark.parametrize("text", ["[]", "5", "{}", '{"model": 5}'])
def test_damaged_metrics_are_refused_and_nothing_is_sent(text, adapter, hub, monkeypatch, capsys):
    Path("metrics/cs/lora.json").write_text(text)
    status, _, error = push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes")
    assert status == 1 and "metrics/cs/lora.json: field" in error.splitlines()[-1]
    assert hub.files(REPOSITORY) is None


def test_metrics_that_are_being_written_are_no_metrics_yet(adapter, hub, monkeypatch, capsys):
    Path("metrics/cs/.temporary.json").write_text("{")
    status, _, error = push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes")
    assert status == 0, error


def test_a_card_that_was_edited_keeps_its_words_and_gets_new_rates(adapter, hub, monkeypatch, capsys):
    assert push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes")[0] == 0
    card = hub.root / REPOSITORY / "README.md"
    (adapter / "README.md").write_text(card.read_text().replace("## How to run it", "My words.\n\n## How to run it"))
    measured("lora", str(adapter), 2)
    assert push(monkeypatch, capsys, str(adapter.resolve()), REPOSITORY, "--yes")[0] == 0
    text = card.read_text()
    assert "My words." in text and "| 4 | 50.0 (50.0 to 50.0) |" in text and "| 4 | 25.0" not in text
    assert [one.metric_value for one in ModelCard(text).data.eval_results] == [50.0, 36.84]


def test_what_the_repository_has_besides_is_told_and_kept(adapter, hub, monkeypatch, capsys):
    (hub.repository(REPOSITORY) / "notes.txt").write_text("mine")
    status, out, _ = push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes", "--private")
    assert status == 0
    assert "(is there already):" in out and "stays there: notes.txt" in out
    assert (hub.root / REPOSITORY / "notes.txt").read_text() == "mine"
    assert "POST /api/repos/create" not in hub.asked


def test_a_private_repository(adapter, hub, monkeypatch, capsys):
    status, out, _ = push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes", "--private")
    assert status == 0 and "(new, private)" in out
    assert hub.created_private == {REPOSITORY}


def test_experts_warn_of_a_base_that_nobody_else_has(tiny_whisper, hub, monkeypatch, capsys):
    make_experts(tiny_whisper, Path("experts"))
    status, out, error = push(monkeypatch, capsys, "experts", REPOSITORY, "--yes")
    assert status == 0, error
    assert "a folder of this machine" in error and "no licence" in error and "no error rates" in error
    assert "go through the base's own blocks" in out


@pytest.mark.parametrize("answer", ["n\n", None], ids=["no", "nobody"])
def test_nothing_is_sent_without_a_yes(answer, adapter, hub, monkeypatch, capsys):
    if answer:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("click.confirm", lambda question: False)
    status, out, error = push(monkeypatch, capsys, str(adapter), REPOSITORY)
    assert status == (130 if answer else 2)
    assert "adapter_model.safetensors" in out
    assert not any(one.startswith(("POST", "PUT")) for one in hub.asked)
    if not answer:
        assert "--yes" in error


def refused(hub: Hub, name: str, adapter: Path, monkeypatch) -> str:
    """Makes what is to be refused. Returns the model's folder."""
    if name == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    elif name == "card":
        hub.refuses_cards = True
    elif name == "down":
        hub.down = True
        monkeypatch.setattr("time.sleep", lambda seconds: None)
    elif name == "unfinished":
        (adapter / "checkpoint.safetensors").write_bytes(b"")
    elif name == "empty":
        Path("empty").mkdir()
        return "empty"
    elif name == "missing":
        return "nowhere"
    return str(adapter)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("token", "log in with `hf auth login`"),
        ("card", "invalid card"),
        ("down", "status 503"),
        ("unfinished", "its training has not ended"),
        ("empty", "no model in it"),
        ("missing", "no such folder"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(name, words, adapter, hub, monkeypatch, capsys):
    before = dict(hub.files(REPOSITORY) or {})
    status, _, error = push(monkeypatch, capsys, refused(hub, name, adapter, monkeypatch), REPOSITORY, "--yes")
    assert status == 1
    assert words in error.splitlines()[-1]
    assert "Traceback" not in error
    assert dict(hub.files(REPOSITORY) or {}) == before


@pytest.mark.parametrize("repository", ["whisper-cs", "a/b/c", "some one/x", "a/.."])
def test_a_name_that_the_hub_does_not_take(repository, adapter, hub, monkeypatch, capsys):
    status, _, error = push(monkeypatch, capsys, str(adapter), repository, "--yes")
    assert status == 2
    assert "OWNER/NAME" in error


def test_what_was_sent_loads_by_its_name(adapter, hub, monkeypatch, capsys):
    """Also with the card's own lines."""
    assert push(monkeypatch, capsys, str(adapter), REPOSITORY, "--yes")[0] == 0
    here, there = (dict(load_model(source).whisper.model.named_parameters()) for source in (str(adapter), REPOSITORY))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    soundfile.write("speech.wav", decode_flac(make_utterance(5, 0.9)["audio"]), 16000, subtype="FLOAT")
    lines: list[str] = []
    card = (hub.root / REPOSITORY / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0], {"print": lines.append})
    assert lines == [load_model(str(adapter)).transcribe("speech.wav", "cs").text]
