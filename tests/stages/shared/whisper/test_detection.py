"""The language that is heard: transformers' own answer, its probability, and what it is chosen from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from makers import make_tiny_whisper, make_utterance

from cache.errors import PipelineError
from stages.shared.audio import decode_flac
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.detection import detect_language
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import use_token


def clip(number: int) -> np.ndarray:
    return decode_flac(make_utterance(number)["audio"])


def logits(whisper: Whisper, number: int) -> torch.Tensor:
    """Of the language tokens alone, in the order of `lang_to_id`."""
    start = torch.tensor([[whisper.model.config.decoder_start_token_id]])
    with torch.inference_mode():
        found = whisper.model(LogMel(80, 1)([clip(number)]), decoder_input_ids=start).logits[0, -1]
    return found[list(whisper.model.generation_config.lang_to_id.values())]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_what_transformers_detects(seed, tmp_path):
    whisper = load_whisper(str(make_tiny_whisper(tmp_path / "m", seed)), 1)
    code, probability = detect_language(whisper, [clip(0)], torch.float32)
    token = whisper.model.detect_language(LogMel(80, 1)([clip(0)]))
    assert whisper.tokenizer.convert_ids_to_tokens(int(token)) == f"<|{code}|>"
    assert probability == pytest.approx(float(logits(whisper, 0).softmax(-1).max()), rel=1e-4)


def test_several_clips_count_alike(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    means = torch.stack([logits(whisper, number).softmax(-1) for number in range(3)]).mean(0)
    names = list(whisper.model.generation_config.lang_to_id)
    code, probability = detect_language(whisper, [clip(0), clip(1), clip(2)], torch.float32)
    assert f"<|{code}|>" == names[int(means.argmax())]
    assert probability == pytest.approx(float(means.max()), rel=1e-4)


def test_it_is_chosen_among_those_that_are_named(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    names = list(whisper.model.generation_config.lang_to_id)
    worst = sorted(names, key=lambda name: float(logits(whisper, 0)[names.index(name)]))[:2]
    code, probability = detect_language(whisper, [clip(0)], torch.float32, [name[2:-2] for name in worst])
    assert f"<|{code}|>" == worst[1]
    assert 0.5 <= probability < 1
    use_token(whisper.model, "gn", worst[1][2:-2])  # a language that is trained under another's token
    assert detect_language(whisper, [clip(0)], torch.float32, [worst[0][2:-2], "gn"])[0] == "gn"


def test_languages_under_one_token_are_not_told_apart(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    for code in ("gn", "qu"):
        use_token(whisper.model, code, "es")
    with pytest.raises(PipelineError, match="^gn and qu are trained under one token, .*: give the language"):
        detect_language(whisper, [clip(0)], torch.float32, ["gn", "qu"])
    assert detect_language(whisper, [clip(0)], torch.float32, ["gn"])[0] == "gn"


def test_an_english_model_hears_english(tmp_path):
    whisper = load_whisper(str(make_tiny_whisper(tmp_path / "en", multilingual=False)), 1)
    assert detect_language(whisper, [clip(0)], torch.float32) == ("en", 1.0)


def test_a_token_that_the_model_lacks_is_not_chosen(tmp_path):
    whisper = load_whisper(str(make_tiny_whisper(tmp_path / "few", languages=["cs", "nl"])), 1)
    assert detect_language(whisper, [clip(0)], torch.float32)[0] in ("cs", "nl")


def test_experts_have_no_part_in_it(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    expected = detect_language(whisper, [clip(0)], torch.float32)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"]).eval()
    for parameter in student.expert_state("cs").values():
        parameter.data += 0.1
    assert detect_language(replace(whisper, model=student), [clip(0)], torch.float32) == expected
