"""A tiny Whisper with random weights and a byte-level tokenizer, and small shards of made audio: no network, no downloads."""

import hashlib
from pathlib import Path

import numpy as np
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

from cache.shards import ShardWriter
from stages.audio import SAMPLE_RATE, audio_sha256, encode_flac

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


def make_tiny_whisper(folder: Path, seed: int = 0, width: int = 32) -> Path:
    """A transformers folder: 2 + 2 layers of `width`, 80 mels, one token per byte; all text ids lie below the special ones."""
    torch.manual_seed(seed)
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    special += [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    vocabulary = {character: number for number, character in enumerate(bytes_to_unicode().values())}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens(special[:-1501], special_tokens=True)
    tokenizer.add_tokens(special[-1501:])
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    size = dict(d_model=width, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2)
    tokens = dict(pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start)
    config = WhisperConfig(vocab_size=len(tokenizer), num_mel_bins=80, **size, **heads, **tokens)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **tokens,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        is_multilingual=True,
        return_timestamps=False,
        max_length=448,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


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


def make_utterance_shards(folder: Path, rows: list[int], split: str = "train", format: str = "parquet") -> Path:
    """Finished utterance shards with `rows` clips each, of 0.4 to 0.9 s."""
    writer = ShardWriter(folder, "utterances", {"language": "cs", "split": split, "made": rows}, format)
    number = int(hashlib.sha256(split.encode()).hexdigest(), 16) % 50
    for index, count in enumerate(rows):
        records = [make_utterance(number + i, 0.4 + 0.1 * (i % 6)) for i in range(count)]
        number += count
        writer.write(index, records, seconds=sum(record["seconds"] for record in records))
    writer.finish(corpus="made", language="cs", split=split, seconds=0.0, left_out={})
    return folder
