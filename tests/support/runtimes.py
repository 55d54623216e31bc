"""Runs an exported folder by the program that it is for, greedily, on clips of one window: text for text, to compare.

Each function returns what a list of clips, (samples,) float32 at 16 kHz, is turned into: a list of texts.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stages.shared.audio import SAMPLE_RATE
from stages.shared.whisper.decode import Transcriber
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.window import FRAMES_PER_SECOND

Says = Callable[[list[np.ndarray]], list[str]]


def padded(clip: np.ndarray, window: int) -> np.ndarray:
    """faster-whisper and whisper.cpp pad features, or refuse what is shorter than a second: so the clip is padded."""
    return np.pad(clip, (0, window * SAMPLE_RATE - len(clip)))


def transformers_says(folder: Path, language: str, window: int) -> Says:
    """By transformers alone, as the card says."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = model.model.encoder
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[: 50 * window])
    model.config.max_source_positions = 50 * window
    extract = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=window)
    tokenizer = WhisperTokenizer.from_pretrained(folder)

    def says(clips: list[np.ndarray]) -> list[str]:
        features = extract(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        rows = model.generate(features, language=language, task="transcribe")
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]

    return says


def ctranslate2_says(folder: Path, language: str, window: int, compute_type: str = "float32") -> Says:
    """By CTranslate2 on our features."""
    import ctranslate2
    from transformers import WhisperTokenizer

    model = ctranslate2.models.Whisper(
        str(folder), device="cpu", compute_type=compute_type, intra_threads=torch.get_num_threads()
    )
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    log_mel = LogMel(model.n_mels, window)
    names = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
    prompt = tokenizer.convert_tokens_to_ids(names)

    def says(clips: list[np.ndarray]) -> list[str]:
        features = ctranslate2.StorageView.from_array(log_mel(clips).numpy())
        found = model.generate(features, [prompt] * len(clips), beam_size=1)
        return [tokenizer.decode(one.sequences_ids[0], skip_special_tokens=True).strip() for one in found]

    return says


def faster_whisper_says(folder: Path, language: str, window: int, compute_type: str = "float32") -> Says:
    """By faster-whisper on the clip, in the window of the training, without any of its ways to try again."""
    import faster_whisper.transcribe
    from faster_whisper import WhisperModel
    from faster_whisper.audio import pad_or_trim

    faster_whisper.transcribe.pad_or_trim = partial(pad_or_trim, length=FRAMES_PER_SECOND * window)  # as the card says
    model = WhisperModel(str(folder), device="cpu", compute_type=compute_type, cpu_threads=torch.get_num_threads())
    plain = dict(no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None, temperature=0.0)
    plain |= dict(beam_size=1, condition_on_previous_text=False, without_timestamps=True, language=language)

    def says(clips: list[np.ndarray]) -> list[str]:
        found = [model.transcribe(padded(clip, window), **plain)[0] for clip in clips]
        return [" ".join(segment.text.strip() for segment in segments).strip() for segments in found]

    return says


def whisper_cpp_says(folder: Path, language: str, window: int) -> Says:
    """By whisper.cpp on the clip, without any of its ways to try again."""
    from pywhispercpp.model import Model

    plain = dict(temperature=0.0, temperature_inc=0.0, no_context=True, single_segment=True, no_timestamps=True)
    plain |= dict(suppress_blank=True, suppress_nst=True, print_progress=False, greedy={"best_of": 1})
    plain |= dict(audio_ctx=50 * window, language=language, n_threads=torch.get_num_threads())
    model = Model(
        str(folder / "ggml-model.bin"), redirect_whispercpp_logs_to=None, context_params={"flash_attn": False}, **plain
    )

    def says(clips: list[np.ndarray]) -> list[str]:
        found = [model.transcribe(padded(clip, window)) for clip in clips]
        return [" ".join(segment.text.strip() for segment in segments).strip() for segments in found]

    return says


def ours_says(whisper: Whisper, language: str) -> Says:
    """As `evaluate` and `transcribe` do, in float32."""
    transcribe = Transcriber(whisper, language, torch.float32)
    return lambda clips: [one.text for one in transcribe(clips)]


def onnx_says(folder: Path, language: str, window: int) -> Says:
    """By ONNX Runtime, with the lines of the card: those that load once, the others for each clip."""
    import soundfile

    code = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert f"<|{language}|>" in code and f"at most {window} s" in code
    head, tail = code.replace('"here', f'"{folder}').split("samples, rate = ")
    said: list[str] = []
    scope = {"print": said.append}
    exec(head.replace('f"here', f'f"{folder}'), scope)

    def says(clips: list[np.ndarray]) -> list[str]:
        said.clear()
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "clip.wav"
            for clip in clips:
                soundfile.write(path, clip, SAMPLE_RATE, subtype="FLOAT")
                exec("samples, rate = " + tail.replace("clip.wav", str(path)), scope)
        return [text.strip() for text in said]

    return says
