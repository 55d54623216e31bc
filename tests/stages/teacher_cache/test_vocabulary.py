"""A teacher whose special tokens have other ids than the student's, and models that do not belong together."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import make_tiny_whisper, make_utterance_shards, speaking
from references import assert_is_distribution, prompt_of, reference, tail_of, targets_of
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from cache.errors import PipelineError
from cache.shards import ShardReader
from stages.shared.audio import decode_flac
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.models import Whisper, load_whisper
from stages.teacher_cache.job import ScoringJob
from stages.teacher_cache.run import cache_teacher
from stages.teacher_cache.settings import TeacherCacheSettings
from stages.teacher_cache.vocabulary import Vocabulary, load_vocabulary, map_tokens, vocabulary_of
from stages.train_student.data import TrainingData
from stages.train_student.settings import TrainSettings

CPU = torch.device("cpu")
BOUNDS = {"top_k": 8, "top_p": 0.5, "min_k": 2, "bits": 7}
EXTRA = "<|uk|>"  # the student lacks it; in the teacher it comes before <|cs|> and all that follows


def cache(
    teacher: Whisper, source: Path, out: Path, language: str = "cs", student: Vocabulary | None = None, **changes
):
    settings = TeacherCacheSettings(**{**BOUNDS, "batch_size": 3, "dtype": "fp32", **changes})
    return cache_teacher(ScoringJob(teacher, language, settings, CPU, student), source, out)


def rows_of(folder: Path, kind: str = "teacher") -> list[dict]:
    reader = ShardReader(folder, kind)
    return [row for index in range(len(reader.shards)) for row in reader.read(index)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    languages = [code for code in LANGUAGES if code != "uk"]
    return load_whisper(str(make_tiny_whisper(tmp_path_factory.mktemp("student"), seed=5, languages=languages)), 1)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    """A teacher as large-v3 is one: 128 mel bins and a further language, of which it thinks a lot."""
    whisper = load_whisper(str(make_tiny_whisper(tmp_path_factory.mktemp("teacher"), seed=6, mels=128)), 1)
    decoder = whisper.model.model.decoder
    with torch.no_grad():
        decoder.layer_norm.weight.mul_(25)
        decoder.embed_tokens.weight[whisper.tokenizer.convert_tokens_to_ids(EXTRA)].mul_(-3.5)
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(20)
    return whisper


def by_name(teacher: Whisper, student: Whisper) -> list[int]:
    """The teacher's id of each of the student's tokens."""
    names = student.tokenizer.convert_ids_to_tokens(list(range(len(student.tokenizer))))
    return teacher.tokenizer.convert_tokens_to_ids(names)


def renormalised(log_probs: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Over the student's tokens alone, in the student's order."""
    kept = log_probs[:, chosen]
    return kept - np.log(np.exp(kept).sum(-1, keepdims=True))


def test_what_is_cached_is_in_the_students_ids(newer, student, utterances, tmp_path):
    manifest = cache(newer, utterances / "train", tmp_path / "out", student=vocabulary_of(student))
    chosen = by_name(newer, student)
    shifted = [number for number, there in enumerate(chosen) if number != there]
    assert len(chosen) == len(newer.tokenizer) - 1
    assert shifted and shifted == list(range(shifted[0], len(chosen)))  # all that follow the further language
    assert manifest["settings"]["prompt"] == prompt_of(student) != prompt_of(newer)
    assert manifest["settings"]["vocab_size"] == len(chosen)
    assert manifest["settings"]["teacher_vocab_size"] == len(chosen) + 1
    assert manifest["settings"]["mel_bins"] == 128
    tails, ids, extra = [], set(), []
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(utterances / "train", "utterances"), strict=True):
        assert row["targets"].tolist() == targets_of(student, utterance)
        log_probs = reference(newer, utterance, targets_of(newer, utterance))
        extra.append(np.exp(log_probs[:, newer.tokenizer.convert_tokens_to_ids(EXTRA)]))
        mapped = renormalised(log_probs, chosen)
        assert_is_distribution(row, mapped, **BOUNDS)
        tails.append(tail_of(row, mapped))
        ids |= set(row["top_ids"].tolist())
    assert np.concatenate(extra).max() > 0.1  # it would show
    assert ids & set(shifted)
    expected = np.concatenate(tails).sum(0)
    found = ShardReader(tmp_path / "out", "teacher").tail()
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4, atol=1e-9)


def test_the_student_takes_the_mapped_cache_and_no_other(newer, student, utterances, tmp_path):
    cache(newer, utterances / "train", tmp_path / "mapped", student=vocabulary_of(student))
    cache(newer, utterances / "train", tmp_path / "own")
    source = ShardReader(utterances / "train", "utterances")
    data = TrainingData(source, ShardReader(tmp_path / "mapped", "teacher"), student, "cs", TrainSettings())
    assert sum(len(batch.ids) for batch in data.batches(4, 0, 0)) == 9
    with pytest.raises(PipelineError, match="tokenizer: found .*vocab_size: found .*prompt: found"):
        TrainingData(source, ShardReader(tmp_path / "own", "teacher"), student, "cs", TrainSettings())


def test_what_the_teacher_says_in_tokens_that_the_student_lacks_is_left_out(tiny_whisper, student, tmp_path):
    """The further token in the place of a letter: whoever does not say it is kept, and scored without it."""
    plain, changed = (speaking(load_whisper(str(tiny_whisper), 1), listen=20, end=2.5, seed=4) for _ in range(2))
    letter, extra = plain.tokenizer.convert_tokens_to_ids(["k", EXTRA])
    with torch.no_grad():
        embedding = changed.model.model.decoder.embed_tokens.weight
        embedding[extra] = embedding[letter]
    suppressed = changed.model.generation_config.suppress_tokens
    changed.model.generation_config.suppress_tokens = [n for n in [*suppressed, letter] if n != extra]
    source = make_utterance_shards(tmp_path / "source", [12], first=0)
    manifest = cache(changed, source, tmp_path / "out", student=vocabulary_of(student), targets="pseudo")
    transcriber, left_out = Transcriber(plain, "cs", torch.float32), 0
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(source, "utterances"), strict=True):
        (said,) = transcriber([decode_flac(utterance["audio"])])
        if not said.unended and "k" not in said.text:
            assert row["targets"].tolist() == said.tokens  # letters and end of text have the same ids
            log_probs = reference(changed, utterance, said.tokens)
            assert_is_distribution(row, renormalised(log_probs, by_name(changed, student)), **BOUNDS)
        else:
            assert len(row["targets"]) == 0
            left_out += not said.unended
    assert manifest["left_out"]["unknown_token"] == left_out > 0
    assert manifest["tokens"] > 0


# The map


def test_equal_vocabularies_map_to_themselves(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    found = map_tokens(vocabulary_of(whisper), load_vocabulary(str(tiny_whisper)))
    assert found.vocabulary_size == len(whisper.tokenizer)
    assert found.to_student.tolist() == list(range(len(whisper.tokenizer)))


def test_columns_without_a_token_and_tokens_without_a_column(tiny_whisper):
    """A projection that was padded has columns for no token; a cut one has none for the last tokens."""
    whisper = load_whisper(str(tiny_whisper), 1)
    size = len(whisper.tokenizer)
    padded, cut = (Vocabulary(whisper.tokenizer, size + change, "it", 448) for change in (3, -2))
    assert map_tokens(padded, cut).to_student.tolist() == [*range(size - 2), *[-1] * 5]


def test_timestamps_that_a_tokenizer_does_not_name(newer, student, tmp_path):
    """Some released ones do not: the ids after <|notimestamps|> are theirs all the same."""
    folder = shutil.copytree(student.folder, tmp_path / "unnamed")
    names = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in names["added_tokens"] if not re.fullmatch(r"<\|\d+\.\d\d\|>", token["content"])]
    assert len(kept) == len(names["added_tokens"]) - 1501
    (folder / "tokenizer.json").write_text(json.dumps({**names, "added_tokens": kept}))
    unnamed, named = load_vocabulary(str(folder)), vocabulary_of(student)
    assert len(unnamed.tokenizer) == unnamed.size - 1501
    teacher = vocabulary_of(newer)
    assert map_tokens(teacher, unnamed).to_student.tolist() == map_tokens(teacher, named).to_student.tolist()
    assert (map_tokens(teacher, unnamed).to_student < 0).sum() == 1
    assert map_tokens(unnamed, named).to_student.tolist() == list(range(named.size))


@pytest.mark.parametrize(
    ("teacher_merges", "student_merges", "message"),
    [
        ([("a", "b")], [("b", "c")], "token 256 is 'ab' there and 'bc' here"),
        ([("a", "b")], [], "token 256 is 'ab' there and '<|endoftext|>' here"),
        ([], [("a", "b")], "token 256 is '<|endoftext|>' there and 'ab' here"),
        ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")], "merge 0 is 'a b' there and 'b c' here"),
        ([("a", "b"), ("ab", "c")], [("b", "c"), ("a", "bc")], "token 256 is 'ab' there and 'abc' here"),
    ],
)
def test_text_that_is_cut_otherwise_is_refused(teacher_merges, student_merges, message, utterances, tmp_path):
    sources = [
        make_tiny_whisper(tmp_path / name, merges=merges)
        for name, merges in (("teacher", teacher_merges), ("student", student_merges))
    ]
    with pytest.raises(PipelineError) as caught:
        cache(
            load_whisper(str(sources[0]), 1),
            utterances / "test",
            tmp_path / "out",
            student=load_vocabulary(str(sources[1])),
        )
    assert str(caught.value).startswith(
        f"{sources[0]} and {sources[1]} do not cut text into the same tokens: {message}"
    )
    assert not (tmp_path / "out").exists()


def test_a_student_that_lacks_the_language_is_refused(tiny_whisper, utterances, tmp_path):
    languages = [code for code in LANGUAGES if code != "cs"]
    student = load_vocabulary(str(make_tiny_whisper(tmp_path / "student", languages=languages)))
    teacher = load_whisper(str(tiny_whisper), 1)
    with pytest.raises(PipelineError) as caught:
        cache(teacher, utterances / "test", tmp_path / "out", student=student)
    assert str(caught.value) == f"{student.model_id} has no token for 'cs', which the teacher {tiny_whisper} knows"


def test_what_is_no_model_has_no_vocabulary(tmp_path):
    with pytest.raises(PipelineError, match=r"no config\.json in it"):
        load_vocabulary(str(tmp_path))
    with pytest.raises(PipelineError, match="not a hub id"):
        load_vocabulary("nothing")


# English-only models


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    folder = make_tiny_whisper(tmp_path_factory.mktemp("english"), multilingual=False)
    return speaking(load_whisper(str(folder), 1), listen=20, end=2.5, seed=4)


def test_an_english_model_is_refused_for_another_language(english, utterances, tmp_path):
    expected = f"{english.model_id} is an English-only model, the language is 'cs': expected a multilingual Whisper"
    for action in (
        lambda: cache(english, utterances / "test", tmp_path / "out"),
        lambda: Transcriber(english, "cs", torch.float32),
        lambda: TrainingData(ShardReader(utterances / "train", "utterances"), None, english, "cs", TrainSettings()),
    ):
        with pytest.raises(PipelineError) as caught:
            action()
        assert str(caught.value) == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("targets", ["reference", "pseudo"])
def test_an_english_model_works_for_english(targets, english, tmp_path):
    """Its prompt names neither language nor task."""
    source = make_utterance_shards(tmp_path / "source", [12], first=0)
    manifest = cache(english, source, tmp_path / "out", "en", targets=targets)
    prompt = english.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    assert manifest["settings"]["prompt"] == prompt
    scored = 0
    for row, utterance in zip(rows_of(tmp_path / "out"), rows_of(source, "utterances"), strict=True):
        if targets == "reference":
            assert row["targets"].tolist() == targets_of(english, utterance)
        if len(row["targets"]):
            ids = row["targets"].tolist()
            log_probs = reference(english, utterance, ids, prompt)
            assert_is_distribution(row, log_probs, **BOUNDS)
            if targets == "pseudo":  # greedy among the letters that it may say
                log_probs[:, english.model.generation_config.suppress_tokens] = -np.inf
                assert log_probs.argmax(-1).tolist() == ids
            scored += 1
    assert scored == 12 - sum(manifest["left_out"].values()) > 3


def test_where_the_model_does_not_say_whether_it_is_english_its_size_does(tiny_whisper):
    whisper = load_whisper(str(tiny_whisper), 1)
    assert not whisper.english_only
    del whisper.model.generation_config.is_multilingual
    assert not whisper.english_only
    whisper.model.config.vocab_size = 51864  # openai/whisper-tiny.en; the multilingual ones have 51865
    assert whisper.english_only
