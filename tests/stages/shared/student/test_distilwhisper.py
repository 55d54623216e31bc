"""The model class as a user of transformers meets it: languages as arguments, saving, Auto classes, pipeline, training."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

import stages.shared.student.auto  # noqa: F401 (the one import)
from cache.errors import PipelineError
from stages.shared.student.loading import load_model
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.models import Whisper, load_whisper

ROWS = 4


@pytest.fixture
def whisper(tiny_whisper: Path) -> Whisper:
    return load_whisper(str(tiny_whisper), 1)


@pytest.fixture
def student(whisper: Whisper) -> DistilWhisperForConditionalGeneration:
    """Experts for Czech and Polish that matter."""
    model = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs", "polish"])
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for language in model.languages:
            for parameter in model.expert_state(language).values():
                parameter += 0.4 * torch.randn(parameter.shape, generator=random)
    return model.eval()


def batch(rows: int = ROWS) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "input_features": torch.randn(rows, 80, 100, generator=random),
        "decoder_input_ids": torch.randint(0, 256, (rows, 7), generator=random),
    }


@torch.no_grad()
def forward(model, **kwargs):
    return model(**batch(), use_cache=False, **kwargs)


# Languages are arguments


def test_names_codes_and_tokens_are_the_same(student):
    czech = forward(student, language="cs")
    for name in ("Czech", "czech", "<|cs|>", ["cs"] * ROWS, ["czech", "cs", "Czech", "cs"]):
        assert torch.equal(forward(student, language=name).logits, czech.logits)
    assert not torch.equal(forward(student, language="pl").logits, czech.logits)


@pytest.mark.parametrize("language", [None, "nl", ["nl", None, "ca", "nl"]])
def test_without_an_expert_it_is_the_base_bit_for_bit(student, whisper, language):
    assert torch.equal(forward(student, language=language).logits, forward(whisper.model).logits)


def test_no_language_is_left_behind(student, whisper):
    forward(student, language="cs")
    student.generate(batch()["input_features"], language="pl", task="transcribe", max_new_tokens=3)
    assert torch.equal(forward(student).logits, forward(whisper.model).logits)


def test_rows_of_a_mixed_batch_are_those_of_their_language(student):
    asked = ["cs", "nl", "polish", "cs"]
    mixed = forward(student, language=asked)
    for row, language in enumerate(asked):
        alone = forward(student, language=language)
        torch.testing.assert_close(mixed.logits[row], alone.logits[row], atol=1e-5, rtol=1e-5)
        for side in ("encoder_gates", "decoder_gates"):
            for both, one in zip(getattr(mixed, side), getattr(alone, side), strict=True):
                assert torch.equal(both[row], one[row])


def test_gates_of_every_layer(student):
    output = forward(student, language="cs")
    assert [gate.shape for gate in output.encoder_gates] == [(ROWS, 50)] * 2
    assert [gate.shape for gate in output.decoder_gates] == [(ROWS, 7)] * 2
    assert 0.05 < torch.cat([g.flatten() for g in output.encoder_gates]).float().mean() < 0.95
    assert not any(gate.any() for gate in forward(student, language="nl").encoder_gates)
    assert forward(student).encoder_gates is None
    listed = forward(student, language="cs", return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(listed[-1], output.decoder_gates, strict=True))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("catlan", "unknown language 'catlan'.*catalan"),
        (["cs", "cs", "cs", "catlan"], "unknown language 'catlan'"),
        ("klingon", "no token for Klingon"),  # a language that neither Whisper nor an expert is for
        (["cs", "cs", "cs", "gn"], "no token for Guarani"),
    ],
)
def test_an_unknown_language_is_an_error(student, language, text):
    for call in (
        lambda: forward(student, language=language),
        lambda: student.generate(batch()["input_features"], language=language),
        lambda: student.route(language),
    ):
        with pytest.raises(PipelineError, match=text):
            call()


def test_as_many_languages_as_rows(student):
    with pytest.raises(ValueError, match="3 languages for a batch of 4 rows"):
        forward(student, language=["cs", "pl", "cs"])


def test_threads_do_not_see_each_others_language(student):
    expected = {language: forward(student, language=language).logits for language in ("cs", "pl", "nl")}
    wrong: list[str] = []

    def call(language: str) -> None:
        for _ in range(10):
            if not torch.equal(forward(student, language=language).logits, expected[language]):
                wrong.append(language)

    threads = [threading.Thread(target=call, args=(language,)) for language in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_experts_come_and_go(student, whisper):
    polish = forward(student, language="pl").logits
    student.drop_expert("czech")
    assert student.languages == ["pl"]
    assert torch.equal(forward(student, language="cs").logits, forward(whisper.model).logits)
    assert torch.equal(forward(student, language="pl").logits, polish)
    with pytest.raises(PipelineError, match="no expert for 'cs': there are pl"):
        student.drop_expert("cs")


# generate


def generated(model, language, **kwargs) -> list[list[int]]:
    given = {"task": "transcribe", "max_new_tokens": 8, **kwargs}
    end = model.config.eos_token_id
    rows = model.generate(batch()["input_features"], language=language, **given).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]  # padded where another row is longer


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_routes_each_row(student, beams):
    asked = ["cs", "nl", "pl", "cs"]
    alone = {language: generated(student, language, num_beams=beams) for language in asked}
    assert alone["cs"] != alone["pl"]
    assert generated(student, asked, num_beams=beams) == [alone[language][row] for row, language in enumerate(asked)]


def test_several_languages_need_one_window(student):
    long = torch.randn(2, 80, 250)
    with pytest.raises(PipelineError, match="call it once for each language"):
        student.generate(long, language=["cs", "pl"], return_timestamps=True, attention_mask=torch.ones(2, 250))
    with pytest.raises(PipelineError, match="one temperature"):
        student.generate(batch(2)["input_features"], language=["cs", "pl"], temperature=(0.0, 0.2))


def test_translating_keeps_the_decoder_on_the_shared_path(student, whisper):
    """As published. The decoder is then the base's, bit for bit; the encoder still takes the expert."""
    translated = forward(student, language="cs", task="translate")
    assert any(gate.any() for gate in translated.encoder_gates)
    assert not any(gate.any() for gate in translated.decoder_gates)
    encoded = (translated.encoder_last_hidden_state,)
    ids = batch()["decoder_input_ids"]
    with torch.no_grad():
        base = whisper.model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
    assert torch.equal(translated.logits, base)
    with student.route("cs") as routing:
        generated(student, "cs", task="translate")
    assert not any(
        gate.any() for layer, calls in routing.gates.items() for gate in calls if layer.startswith("decoder")
    )


# On disk, and by the names that transformers knows


def saved(student, whisper: Whisper, folder: Path) -> Path:
    student.save_pretrained(folder)
    whisper.tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


def test_one_expert_is_saved_beside_the_name_of_its_base(student, tiny_whisper, tmp_path):
    student.save_expert(tmp_path / "polish", "polish", precision="fp32")
    fresh = DistilWhisperForConditionalGeneration.from_whisper(load_whisper(str(tiny_whisper), 1).model).eval()
    assert fresh.load_expert(tmp_path / "polish") == "pl"
    assert torch.equal(forward(fresh, language="pl").logits, forward(student, language="pl").logits)
    loaded = load_model(str(tmp_path / "polish"), 1)  # finds the base by its name, and checks its weights
    assert torch.equal(forward(loaded.whisper.model, language="pl").logits, forward(student, language="pl").logits)
    with pytest.raises(PipelineError, match="no expert for 'ca': there are cs, pl"):
        student.save_expert(tmp_path / "catalan", "catalan")
    with pytest.raises(PipelineError, match="holds experts for pl: expected one of them, found ca"):
        fresh.load_expert(tmp_path / "polish", "catalan")
    with pytest.raises(PipelineError, match="no such folder, and not a hub id"):
        fresh.load_expert(tmp_path / "nowhere", "catalan")


@pytest.mark.parametrize("cls", [DistilWhisperForConditionalGeneration, AutoModelForSpeechSeq2Seq])
def test_saved_and_loaded_it_is_the_same(cls, student, whisper, tmp_path):
    loaded = cls.from_pretrained(saved(student, whisper, tmp_path)).eval()
    assert type(loaded) is DistilWhisperForConditionalGeneration
    assert loaded.languages == ["cs", "pl"]
    found, wanted = loaded.state_dict(), student.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    for language in ("cs", "pl", "nl"):  # a product's last bits follow from where in memory its factors lie
        one, other = (forward(model, language=language).logits for model in (loaded, student))
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight


def test_a_plain_whisper_does_not_load_it(student, whisper, tmp_path):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        WhisperForConditionalGeneration.from_pretrained(saved(student, whisper, tmp_path))
    with pytest.raises(PipelineError, match="model_type is 'distilwhisper', expected 'whisper'"):
        load_whisper(str(tmp_path), 1)


def test_the_base_is_not_changed(student, whisper):
    assert type(whisper.model) is WhisperForConditionalGeneration
    assert whisper.model.config.model_type == "whisper"
    routed = student.routed["encoder.layers.0"].shared.fc1
    assert routed.weight is whisper.model.model.encoder.layers[0].fc1.weight


def test_transformers_pipeline(student, whisper, tmp_path):
    letters = set(
        whisper.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop"))
    )  # random weights prefer what is no text
    student.generation_config.suppress_tokens = [n for n in range(len(whisper.tokenizer)) if n not in letters]
    recognise = pipeline("automatic-speech-recognition", model=str(saved(student, whisper, tmp_path)))
    assert type(recognise.model) is DistilWhisperForConditionalGeneration
    clip = np.sin(np.arange(12_000) / 20).astype(np.float32)
    options = {"num_beams": 1, "max_new_tokens": 6, "task": "transcribe"}
    texts = {
        language: recognise(clip, generate_kwargs={"language": language, **options})["text"]
        for language in ("cs", "nl")
    }
    features = recognise.feature_extractor(clip, sampling_rate=16_000, return_tensors="pt").input_features
    for language, text in texts.items():
        ids = student.generate(features, language=language, **options)
        assert text == whisper.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert texts["cs"] != texts["nl"]
    assert recognise.type == "seq2seq_whisper"  # else it would cut audio at its window, unsaid


def test_bf16_weights(student, whisper, tmp_path):
    loaded = DistilWhisperForConditionalGeneration.from_pretrained(
        saved(student, whisper, tmp_path), dtype=torch.bfloat16
    )
    inputs = {"input_features": batch()["input_features"].bfloat16(), "decoder_input_ids": batch()["decoder_input_ids"]}
    with torch.no_grad():
        output = loaded.eval()(**inputs, language=["cs", "pl", "nl", "cs"], use_cache=False)
    assert output.logits.dtype == torch.bfloat16
    exact = forward(student, language=["cs", "pl", "nl", "cs"]).logits
    assert torch.nn.functional.cosine_similarity(output.logits.float().flatten(), exact.flatten(), dim=0) > 0.9


# Training


def gradients(student, language) -> dict[str, torch.Tensor]:
    student.train()
    student.zero_grad()
    torch.manual_seed(5)
    with student.route(language, noise=1.0) as routing:
        loss = student(**batch(), use_cache=False).logits.square().mean()
    gates = torch.cat([gate.flatten() for calls in routing.gates.values() for gate in calls])
    (loss + gates.mean()).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("language", ["cs", ["cs", "pl", "cs", "nl"]])
def test_activation_checkpointing_gives_the_same_gradients(student, language):
    """What is computed again in the backward pass takes the same route, the same noise, and records no gate twice."""
    plain = gradients(student, language)
    student.activation_checkpointing_enable()
    again = gradients(student, language)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name


def test_a_mixed_batch_trains_each_rows_expert(student):
    """The gradient of a mixed batch is the sum of those of its languages; a row without an expert adds nothing."""
    for routed in student.routed.values():
        routed.skip_gate, routed.expert_dropout.p = 0.0, 0.0
        for gate in routed.gates.values():
            gate.dropout.p = 0.0

    def of(language) -> dict[str, torch.Tensor]:
        student.train()
        student.zero_grad()
        rows = torch.tensor([1.0, 0.0, 0.0, 1.0]) if language == "cs" else torch.tensor([0.0, 1.0, 0.0, 0.0])
        if isinstance(language, list):
            rows = torch.tensor([1.0, 1.0, 0.0, 1.0])
        with student.route(language):
            logits = student(**batch(), use_cache=False).logits
        (logits.square().mean((1, 2)) * rows).sum().backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    mixed, czech, polish = of(["cs", "pl", "nl", "cs"]), of("cs"), of("pl")
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient, (czech if ".cs." in name else polish)[name], atol=1e-6, rtol=1e-4)
