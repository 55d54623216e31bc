"""A tiny Whisper with random weights and a byte-level tokenizer, and small shards of made audio: no network, no downloads."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from cache.distributions import quantise
from cache.shards import ShardReader, ShardWriter
from pipeline.cli import main
from stages.shared.audio import SAMPLE_RATE, audio_sha256, encode_flac
from stages.shared.student.experts import write_expert
from stages.shared.whisper.models import Whisper, load_whisper, tokenizer_fingerprint
from stages.shared.whisper.targets import prompt_ids, target_ids, token_of

TEXTS = [
    "Co je to za divnou loď?",
    "Dej pokoj!",
    "To je vrak.",
    "Vidíš to oko?",
    "Sedadla.",
    "Kde jsme?",
    "Ano.",
    "Tady ne.",
]


def make_tiny_whisper(
    folder: Path,
    seed: int = 0,
    width: int = 32,
    languages: Iterable[str] = LANGUAGES,
    mels: int = 80,
    multilingual: bool = True,
    merges: Sequence[tuple[str, str]] = (),
    positions: int = 80,
    extra_pieces: int = 0,
    ffn: int = 2,
) -> Path:
    """A transformers folder: 2 + 2 layers of `width`, a token per byte and merge; all text ids lie below the special ones.

    positions: of the decoder, 448 in the released ones; random weights seldom end a text, and take all the room there is.
    merges: of bytes, by priority; the tokens' ids follow from their names alone.
    extra_pieces: so many more pieces of text, which no text is divided into. ffn: width of the blocks' inside, in widths.
    """
    torch.manual_seed(seed)
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    special += [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    pieces = [*bytes_to_unicode().values(), *sorted("".join(pair) for pair in merges)]
    pieces += [f"x{number}" for number in range(extra_pieces)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=list(merges))
    tokenizer.add_tokens(special[:-1501], special_tokens=True)
    tokenizer.add_tokens(special[-1501:])
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    size = dict(
        d_model=width, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=ffn * width, decoder_ffn_dim=ffn * width
    )
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    tokens = dict(pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start)
    config = WhisperConfig(vocab_size=len(tokenizer), num_mel_bins=mels, **size, **heads, **tokens)
    model = WhisperForConditionalGeneration(config)
    _cut_text(model, positions)
    spoken = dict(
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in languages},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    )
    model.generation_config = GenerationConfig(
        **tokens,
        **(spoken if multilingual else {"forced_decoder_ids": [[1, ids["<|notimestamps|>"]]]}),  # as the released ones
        suppress_tokens=[],
        begin_suppress_tokens=[],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=multilingual,
        return_timestamps=False,
        max_length=448,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)
    return folder


def _cut_text(model: WhisperForConditionalGeneration, positions: int) -> None:
    decoder = model.model.decoder
    decoder.embed_positions.weight = torch.nn.Parameter(decoder.embed_positions.weight[:positions].detach().clone())
    model.config.max_target_positions = positions


def speaking(whisper: Whisper, listen: float, end: float, seed: int) -> Whisper:
    """Says something else for each clip, in a few letters; where it ends follows from `end` and `seed`.

    Random weights hardly listen, hardly tell positions apart, and prefer special tokens, which are no text.
    """
    model, tokenizer = whisper.model, whisper.tokenizer
    words = {
        *tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop\u0120")),
        tokenizer.eos_token_id,
    }  # U+0120: a space
    model.generation_config.suppress_tokens = [n for n in range(len(tokenizer)) if n not in words]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for convolution in (model.model.encoder.conv1, model.model.encoder.conv2):
            convolution.weight.mul_(10)
        decoder = model.model.decoder
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(listen)
        decoder.embed_positions.weight.mul_(10)
        width = decoder.embed_tokens.weight.shape[1]
        decoder.embed_tokens.weight[tokenizer.eos_token_id] = end * 0.02 * torch.randn(width, generator=random)
        decoder.layer_norm.weight.mul_(20)  # peaked; what is most likely stays so
    return whisper


def saying(folder: Path, text: str, window: int = 1) -> Whisper:
    """A Whisper that says `text` to whatever it hears, a token per byte, and ends; "" says nothing."""
    whisper = load_whisper(str(folder), window)
    decoder = whisper.model.model.decoder
    wanted = [*whisper.tokenizer.encode(f" {text}", add_special_tokens=False), whisper.tokenizer.eos_token_id]
    whisper.model.generation_config.suppress_tokens = []
    with torch.no_grad():
        decoder.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
        decoder.embed_positions.weight.zero_()
        for layer in decoder.layers:
            for linear in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        for position in range(3, 448):
            token = wanted[min(position - 3, len(wanted) - 1)]
            decoder.embed_positions.weight[position] = 100 * decoder.embed_tokens.weight[token]
    return whisper


def make_utterance(number: int, seconds: float = 0.6) -> dict:
    """A record of cache.records.UTTERANCE_FIELDS: a tone whose pitch depends on `number`."""
    samples = 0.1 * np.sin(2 * np.pi * (200 + 30 * number) / SAMPLE_RATE * np.arange(round(seconds * SAMPLE_RATE)))
    clip = samples.astype(np.float32)
    return {
        "id": f"clip-{number:03d}",
        "text": TEXTS[number % len(TEXTS)],
        "seconds": len(clip) / SAMPLE_RATE,
        "speaker": f"speaker-{number % 3}",
        "group": f"group-{number % 5}",
        "source": f"{number}.wav",
        "audio_sha256": audio_sha256(clip),
        "audio": encode_flac(clip),
    }


def make_utterance_shards(
    folder: Path,
    rows: list[int],
    split: str = "train",
    format: str = "parquet",
    first: int | None = None,
    texts: Sequence[str] | None = None,
) -> Path:
    """Finished utterance shards with `rows` clips each, of 0.4 to 0.9 s.

    first: number of the first clip; None: by the split, so that no clip is in two. texts: other transcripts.
    """
    writer = ShardWriter(folder, "utterances", {"language": "cs", "split": split, "made": rows}, format)
    number = int(hashlib.sha256(split.encode()).hexdigest(), 16) % 50 if first is None else first
    changes = [{}] * sum(rows) if texts is None else [{"text": text} for text in texts]
    for index, count in enumerate(rows):
        records = [{**make_utterance(number + i, 0.4 + 0.1 * (i % 6)), **changes.pop(0)} for i in range(count)]
        number += count
        writer.write(index, records, seconds=sum(record["seconds"] for record in records))
    writer.finish(corpus="made", language="cs", split=split, seconds=0.0, left_out={})
    return folder


def make_teacher_shards(
    folder: Path,
    utterances: Path,
    student: Whisper,
    heard: Callable[[int], dict] = lambda number: {},
    targets: str = "reference",
    language: str = "cs",
) -> Path:
    """Of a teacher who is sure of one token, the same everywhere. heard: changes to the fields of record `number`."""
    source = ShardReader(utterances, "utterances")
    facts = {
        "language": language,
        "token": token_of(student.model, language),
        "utterances": source.fingerprint(),
        "tokenizer": tokenizer_fingerprint(student.tokenizer),
        "vocab_size": student.model.config.vocab_size,
        "prompt": prompt_ids(student, language),
        "audio_window_s": student.audio_window_s,
        "targets": targets,
        "bits": 8,
    }
    writer, words, number = ShardWriter(folder, "teacher", facts), 0, 0
    for index in range(len(source.shards)):
        records = []
        for row in source.read(index):
            ids = target_ids(student.tokenizer, row["text"], "cs")
            source_of = {"target_source": "teacher" if targets == "pseudo" else "transcript"}
            records.append({**_sure_record(row["id"], ids), **source_of, **heard(number)})
            words, number = words + (records[-1]["words"] or 0), number + 1
        writer.write(index, records, seconds=1.0, left_out=[])
    writer.finish(left_out={}, words=words)
    np.save(folder / "tail.npy", np.full(facts["vocab_size"], 1 / facts["vocab_size"], np.float32))
    return folder


def _sure_record(id: str, targets: list[int]) -> dict:
    positions = len(targets)
    return {
        "id": id,
        "targets": np.array(targets, np.uint16),
        "top_counts": np.full(positions, 2, np.uint16),
        "top_ids": np.tile(np.array([65, 66], np.uint16), positions),
        "top_probs": np.tile(quantise(np.array([0.9, 0.05]), 8), positions),
        "tail_log_probs": np.full(positions, np.log(0.05), np.float32),
        "mean_log_prob": -1.0,
        "teacher_text": None,
        "compression_ratio": None,
        "word_errors": None,
        "words": None,
    }


def write_command(path: Path, code: str, options: str = "") -> None:
    """An executable Python script. A "#!" line takes no path with a space: the shell reads the first two lines, Python none."""
    path.write_text(
        f"#!/bin/sh\n'''exec' \"{sys.executable}\" {options} \"$0\" \"$@\"\n' '''\n{code}", encoding="utf-8"
    )
    path.chmod(0o755)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    try:
        main()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


def run_captured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object
) -> tuple[int, str, str]:
    """The command line in this process: its exit status, and what it prints to standard output and standard error."""
    capsys.readouterr()
    status = run(monkeypatch, *map(str, arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def save_expert(student, language: str, folder: Path, metadata: dict, precision="fp16", rank=None) -> None:
    """Writes the student's expert with any `metadata`, also such as no base has."""
    write_expert(folder, language, student.expert_state(language), student.shared_state(), metadata, precision, rank)
