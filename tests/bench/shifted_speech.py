"""Makes the test lines anew as other conditions have them, as further tests for `prepare`.

    python tests/bench/shifted_speech.py --utterances data/utterances/cs --out shifted
    pipeline --set further_tests.babble.corpus=manifest --set further_tests.babble.path=shifted/babble/test.csv \\
        --set further_tests.babble.test_fraction=0 --set further_tests.babble.validation_fraction=0 prepare --lang cs

babble: the voices of six training lines of other scenes, 5 dB below the line. telephone: 300 to 3400 Hz, by way of 8 kHz
samples and 8-bit mu-law. espeak: the transcript read out by espeak-ng, a synthetic voice (needs the command espeak-ng).
"""

import argparse
import csv
import io
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import soxr

from cache.shards import ShardReader
from stages.shared.audio import decode_flac

RATE, TELEPHONE_RATE, BAND = 16_000, 8_000, (300, 3400)
VOICES, SIGNAL_TO_NOISE_DB = 6, 5
MU = 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=Path, default=Path("data/utterances/cs"))
    parser.add_argument("--out", type=Path, default=Path("shifted"))
    args = parser.parse_args()
    tests, others = (list(ShardReader(args.utterances / split, "utterances").records()) for split in ("test", "train"))
    voices = [decode_flac(row["audio"], row["seconds"]) for row in others[:: max(1, len(others) // 200)]]
    random = np.random.default_rng(0)
    made = {
        "babble": lambda row: babble(_samples(row), voices, random),
        "telephone": lambda row: telephone(_samples(row)),
    }
    for name, make in {**made, "espeak": lambda row: read_out(row["text"], args.utterances.name)}.items():
        _write(args.out / name, tests, make)
        print(f"{args.out / name}: {len(tests)} lines", flush=True)


def _samples(row: dict) -> np.ndarray:
    return decode_flac(row["audio"], row["seconds"])


def _write(folder: Path, rows: list[dict], make) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "text", "split", "id"])
        for row in rows:
            name = row["id"].replace("/", "-") + ".wav"
            soundfile.write(folder / name, make(row), RATE, subtype="PCM_16")
            table.writerow([name, row["text"], "test", row["id"]])


def babble(samples: np.ndarray, voices: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Returns (T,) samples with other voices, SIGNAL_TO_NOISE_DB quieter."""
    chosen = random.choice(len(voices), VOICES, replace=False)
    noise = sum(np.resize(voices[number], len(samples)) for number in chosen)
    wanted = np.sqrt(np.mean(samples**2)) / 10 ** (SIGNAL_TO_NOISE_DB / 20)
    mixed = samples + noise * wanted / max(np.sqrt(np.mean(noise**2)), 1e-9)
    return mixed / max(1.0, np.abs(mixed).max())


def telephone(samples: np.ndarray) -> np.ndarray:
    """Returns (T,) samples as a telephone would carry them."""
    narrow = soxr.resample(samples, RATE, TELEPHONE_RATE)
    spectrum, hertz = np.fft.rfft(narrow), np.fft.rfftfreq(len(narrow), 1 / TELEPHONE_RATE)
    narrow = np.fft.irfft(np.where((hertz >= BAND[0]) & (hertz <= BAND[1]), spectrum, 0), len(narrow)).clip(-1, 1)
    codes = np.round((np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)) * 127) / 127
    return soxr.resample(np.sign(codes) * np.expm1(np.abs(codes) * np.log1p(MU)) / MU, TELEPHONE_RATE, RATE).clip(-1, 1)


def read_out(text: str, language: str) -> np.ndarray:
    """Returns (T,) samples of the text, spoken by espeak-ng."""
    spoken = subprocess.run(
        ["espeak-ng", "-v", language, "--stdout", "--stdin"], input=text.encode(), capture_output=True, check=True
    )
    samples, rate = soundfile.read(io.BytesIO(spoken.stdout))
    return soxr.resample(samples, rate, RATE)


if __name__ == "__main__":
    main()
