"""When words are said: planted attention, transformers' own attention, the route through experts, and words from tokens."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_tiny_whisper, make_utterance, saying
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from stages.shared.audio import decode_flac
from stages.shared.student.model import DistilWhisperForConditionalGeneration
from stages.shared.whisper.alignment import align, heads_by_layer, token_times
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper, load_whisper
from stages.shared.whisper.targets import prompt_ids
from stages.shared.whisper.words import Piece, at_silences, silences, split_words, timed_words

RATE = 16_000
PROMPT = 4


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(5, 30), min_size=1, max_size=12), st.integers(0, 2**31))
def test_times_of_a_planted_attention(lengths, seed):
    """Each position looks where the next token is said, the last one at what follows; in every head, with noise."""
    random = np.random.default_rng(seed)
    bounds = np.cumsum([0, *lengths, 15])
    scores_HTS = random.normal(0, 0.5, (3, PROMPT + len(lengths), bounds[-1]))
    for row, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        scores_HTS[:, PROMPT - 1 + row, start:end] += 8
    times = token_times(torch.tensor(scores_HTS, dtype=torch.float32), PROMPT, 7)
    assert np.abs(times - bounds[:-1] / 50).max() <= 0.02 + 1e-9


def tiny(folder: Path, **changes) -> Whisper:
    whisper = load_whisper(str(folder), 1)
    for name, value in changes.items():
        setattr(whisper.model.generation_config, name, value)
    return whisper


def encoded(whisper: Whisper, numbers: list[int]) -> torch.Tensor:
    clips = [decode_flac(make_utterance(number)["audio"]) for number in numbers]
    return whisper.model.model.encoder(LogMel(80, 1)(clips)).last_hidden_state


@torch.inference_mode()
@pytest.mark.parametrize("heads", [[[0, 1], [1, 0]], [[1, 1]], None])
def test_the_attention_is_transformers_own(heads, tiny_whisper):
    """That of its eager way, which is slower and can return it; also in a batch with padding. And the probabilities."""
    whisper = tiny(tiny_whisper, alignment_heads=heads)
    prompt = prompt_ids(whisper, "cs")
    texts = [whisper.tokenizer.encode(text, add_special_tokens=False) for text in ("Dej pokoj!", "Ano.")]
    found = align(whisper.model, encoded(whisper, [0, 1]), prompt, texts, [50, 30])
    eager = WhisperForConditionalGeneration.from_pretrained(
        tiny_whisper, attn_implementation="eager", dtype=torch.float32
    )
    eager.model.encoder = whisper.model.model.encoder
    for row, (ids, filled) in enumerate(zip(texts, (50, 30), strict=True)):
        out = eager.eval()(
            encoder_outputs=(encoded(whisper, [row]),),
            decoder_input_ids=torch.tensor([[*prompt, *ids]]),
            output_attentions=True,
            use_cache=False,
        )
        pairs = heads or [(1, head) for head in range(2)]  # the upper half of two layers
        attention_HTS = torch.stack([out.cross_attentions[layer][0, head] for layer, head in pairs])
        times = token_times(attention_HTS[..., :filled].log(), len(prompt), 7)
        np.testing.assert_allclose(found[row][0], times, atol=1e-9)
        probs_TV = out.logits[0, len(prompt) - 1 : -1].softmax(-1)
        np.testing.assert_allclose(found[row][1], probs_TV[range(len(ids)), ids], rtol=1e-4)
        assert len(found[row][0]) == len(ids) + 1
        assert (np.diff(found[row][0]) >= 0).all() and found[row][0][-1] <= filled / 50


@torch.inference_mode()
def test_experts_are_used_within_a_route_and_their_gates_are_not_counted(tiny_whisper):
    whisper = tiny(tiny_whisper)
    student = DistilWhisperForConditionalGeneration.from_whisper(whisper.model, ["cs"]).eval()
    for layer in student.routed.values():
        layer.gates["cs"].inner.bias.fill_(50)
        layer.gates["cs"].outer.weight.fill_(1.0)
        layer.experts["cs"].fc2.bias.add_(torch.randn(32, generator=torch.Generator().manual_seed(5)))
    prompt, ids = prompt_ids(whisper, "cs"), whisper.tokenizer.encode("Ano.", add_special_tokens=False)
    hidden = encoded(whisper, [0])
    with student.route("cs"):
        ((_, probs),) = align(student, hidden, prompt, [ids], [50])
    logits = student(
        encoder_outputs=(hidden,), decoder_input_ids=torch.tensor([[*prompt, *ids]]), language="cs", use_cache=False
    ).logits
    expected = logits[0, len(prompt) - 1 : -1].softmax(-1)[range(len(ids)), ids]
    np.testing.assert_allclose(probs, expected, rtol=1e-4)
    ((_, base),) = align(student, hidden, prompt, [ids], [50])
    assert np.abs(np.log(base) - np.log(probs)).max() > 0.01
    transcriber = Transcriber(replace(whisper, model=student), "cs", torch.float32)
    clips = [decode_flac(make_utterance(number)["audio"]) for number in (0, 1)]
    (plain, gates), (timed, again) = transcriber.with_gates(clips), transcriber.with_gates(clips, timed=[True, True])
    assert [one.text for one in plain] == [one.text for one in timed]
    assert {layer: len(calls) for layer, calls in gates.items()} == {
        layer: len(calls) for layer, calls in again.items()
    }


def test_heads_are_those_of_the_configuration_or_of_the_size(tiny_whisper):
    assert heads_by_layer(tiny(tiny_whisper, alignment_heads=[[1, 1], [0, 0], [1, 0]]).model) == {0: [0], 1: [1, 0]}
    assert heads_by_layer(tiny(tiny_whisper).model) == {1: [0, 1]}
    another = tiny(tiny_whisper, alignment_heads=[[5, 1], [4, 7]]).model  # of a larger model that this one came from
    assert heads_by_layer(another) == {1: [0, 1]}
    another.config.decoder_layers, another.config.decoder_attention_heads, another.config.vocab_size = 6, 8, 51865
    another.generation_config.alignment_heads = None
    assert heads_by_layer(another) == {3: [1], 4: [2, 3, 7], 5: [1, 2, 4, 6]}  # whisper-base


# Words


@cache
def tokenizer_of(folder: Path) -> WhisperTokenizer:
    return load_whisper(str(folder), 1).tokenizer


def words_of(folder: Path, text: str, language: str) -> list[str]:
    tokenizer = tokenizer_of(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = split_words(tokenizer, ids, language)
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert [number for piece in pieces for number in piece.tokens] == list(range(len(ids)))
    return [piece.text for piece in pieces]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("cs", " Příliš žluťoučký kůň.", [" Příliš", " žluťoučký", " kůň."]),
        ("cs", " Ano - ne , 5 % … „Ale“ jo!", [" Ano -", " ne ,", " 5 % …", " „Ale“", " jo!"]),
        ("cs", " - Kdo?", [" - Kdo?"]),
        ("cs", " ...", [" ..."]),
        ("cs", "", []),
        ("ta", " நான் போகிறேன்.", [" நான்", " போகிறேன்."]),
        ("ja", "今日は、良い。", ["今", "日", "は、", "良", "い。"]),
        ("th", "กินน้ำ", ["กิ", "น", "น้ำ"]),
    ],
)
def test_words_of_tokens(language, text, expected, tiny_whisper):
    assert words_of(tiny_whisper, text, language) == expected


def test_a_token_of_several_letters_is_not_divided(tmp_path):
    folder = make_tiny_whisper(tmp_path / "m", merges=[("a", "b"), ("ab", "c")])
    assert words_of(folder, "abcd", "ja") == ["abc", "d"]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), st.sampled_from(["cs", "th"]))
def test_words_together_are_the_text(tiny_whisper, text, language):
    words_of(tiny_whisper, text.replace("<|", ""), language)


def test_a_text_cut_within_a_letter(tiny_whisper):
    """Decoding stops after so many tokens, maybe in the middle of a letter."""
    tokenizer = tokenizer_of(tiny_whisper)
    ids = tokenizer.encode(" kůň", add_special_tokens=False)[:-1]
    assert "".join(piece.text for piece in split_words(tokenizer, ids, "cs")) == tokenizer.decode(ids)


def noise(*parts: tuple[float, float]) -> np.ndarray:
    """(seconds, loudness) of each part, one after the other."""
    random = np.random.default_rng(0)
    return np.concatenate([random.normal(0, level, round(length * RATE)) for length, level in parts]).astype(np.float32)


def test_silences_are_found_also_with_an_offset():
    clip = noise((0.3, 1e-4), (0.5, 0.1), (0.03, 1e-4), (0.4, 0.1), (0.2, 1e-3))
    for sound in (clip, clip + np.float32(0.2)):
        found = silences(sound)
        assert found == [pytest.approx((0, 0.3), abs=0.011), pytest.approx((1.23, 1.43), abs=0.011)]
    assert silences(np.zeros(0, np.float32)) == silences(np.ones(100, np.float32)) == []


def test_words_end_at_the_silences_around_them():
    quiet = [(0.0, 0.3), (1.0, 1.6), (2.5, 3.0)]
    assert at_silences([0.0, 1.2, 2.4], quiet) == [(0.3, 1.0), (1.6, 2.5)]
    assert at_silences([0.0, 0.9, 2.4], quiet) == [(0.3, 1.0), (1.6, 2.5)]  # attention was early
    assert at_silences([0.0, 0.5, 2.4], quiet) == [(0.3, 0.5), (0.5, 2.5)]  # no silence is near
    assert at_silences([0.0, 0.7, 2.4], quiet) == [(0.3, 0.7), (0.7, 2.5)]
    assert at_silences([0.0, 1.1, 1.4, 2.4], quiet) == [(0.3, 1.0), (1.1, 1.4), (1.4, 2.5)]  # said within a silence


@given(st.lists(st.floats(0, 5), min_size=2, max_size=8), st.lists(st.floats(0, 5), max_size=8))
def test_times_are_in_order_whatever_the_silences(bounds, edges):
    edges = sorted(edges)[: len(edges) // 2 * 2]
    spans = at_silences(sorted(bounds), list(zip(edges[::2], edges[1::2], strict=True)))
    times = [time for span in spans for time in span]
    assert len(spans) == len(bounds) - 1
    assert times == sorted(times)


def test_a_word_takes_its_tokens_times_and_mean_probability():
    pieces = [Piece(" ano", [0, 1]), Piece(" ne", [2])]
    times, probs = np.array([0.0, 0.2, 0.5, 0.8]), np.array([0.5, 1.0, 0.25])
    first, second = timed_words(pieces, times, probs, noise((1.0, 0.1)))
    assert (first.start, first.end, first.probability) == (0.0, 0.5, 0.75)
    assert (second.text, second.start, second.end, second.probability) == (" ne", 0.5, 0.8, 0.25)


def test_transcripts_have_words_where_they_are_asked_for(tmp_path):
    whisper = saying(make_tiny_whisper(tmp_path / "m", positions=448), "Ano, dej pokoj!")
    clips = [
        decode_flac(make_utterance(0)["audio"]),
        np.zeros(8000, np.float32),
        decode_flac(make_utterance(1)["audio"]),
    ]
    found, _ = Transcriber(whisper, "cs", torch.float32).with_gates(clips, timed=[True, True, False])
    assert [word.text for word in found[0].words] == [" Ano,", " dej", " pokoj!"]
    assert found[0].words[-1].end <= len(clips[0]) / RATE
    assert found[1].words == found[2].words == ()
    assert found[2].text == found[0].text
