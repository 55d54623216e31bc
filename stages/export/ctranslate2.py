"""Writes a folder for CTranslate2, which faster-whisper runs, with CTranslate2's own converter."""

import warnings
from pathlib import Path

from cache import files

COPIED = ("tokenizer.json", "preprocessor_config.json")  # faster-whisper reads them
TYPES = {"fp32": "float32", "fp16": "float16"}


def write_ctranslate2(plain: Path, folder: Path, precision: str, audio_window_s: int) -> None:
    """Converts the folder `plain` of transformers.

    `chunk_length` in preprocessor_config.json is the window of the training: faster-whisper then cuts its windows so. The
    positions of all 30 s are there, for any other window.
    """
    from ctranslate2.converters import TransformersConverter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that transformers has renamed
        converter = TransformersConverter(str(plain), copy_files=list(COPIED))
        # force: the folder is new, and empty
        converter.convert(str(folder), quantization=TYPES[precision], force=True)
    preprocessor = files.read_json(folder / "preprocessor_config.json")
    files.write_json(folder / "preprocessor_config.json", preprocessor | {"chunk_length": audio_window_s})
