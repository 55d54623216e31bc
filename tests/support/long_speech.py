"""Speech of several minutes whose words have known places: test clips, one after the other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from stages.shared.audio import SAMPLE_RATE
from stages.shared.normaliser import normalise
from stages.shared.whisper.decode import Transcript
from stages.shared.whisper.words import Word

EDGE = 0.03  # of a clip's loudest 10 ms, as amplitude: what is fainter before and after is cut off


@dataclass(frozen=True)
class Clip:
    text: str  # its transcript
    samples: np.ndarray  # without the silence at its ends
    start: float = 0.0  # seconds, in the speech
    end: float = 0.0


def without_edges(samples: np.ndarray) -> np.ndarray:
    """Removes what is before and after the speech. Kept independent of `silences`, which finds them otherwise."""
    frame = SAMPLE_RATE // 100
    loud = np.abs(samples[: len(samples) // frame * frame].reshape(-1, frame)).max(axis=1)
    heard = np.flatnonzero(loud > EDGE * loud.max())
    return samples[heard[0] * frame : (heard[-1] + 1) * frame]


def one_after_the_other(clips: Sequence[Clip], pauses: Sequence[float], seed: int) -> tuple[np.ndarray, list[Clip]]:
    """Returns the speech, and its clips with their places. pauses: seconds, of which one is drawn after each clip.

    The pauses hold noise at -66 dBFS, as of a microphone.
    """
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    placed, at = [], 0
    for clip in clips:
        placed.append(Clip(clip.text, clip.samples, at / SAMPLE_RATE, (at + len(clip.samples)) / SAMPLE_RATE))
        pause = noise.normal(0, 0.0005, round(draw.choice(pauses) * SAMPLE_RATE)).astype(np.float32)
        parts += [clip.samples, pause]
        at += len(clip.samples) + len(pause)
    return np.concatenate(parts), placed


def words_of(windows: Sequence[Transcript]) -> list[Word]:
    return [word for window in windows for word in window.words]


def edge_errors(placed: Sequence[Clip], found: Sequence[Word], language: str) -> tuple[list[float], list[float]]:
    """Returns how late words begin (seconds) that begin a clip, and how late words end that end one.

    Words are compared in order with the transcripts. Only words that were heard right count: of the others nobody can say
    which part of the clip they are.
    """
    said = [(normalise(word, language), clip) for clip in placed for word in clip.text.split()]
    said = [(text, clip) for text, clip in said if text]
    heard = [(normalise(word.text, language), word) for word in found]
    heard = [(text, word) for text, word in heard if text]
    # one unit for each word, also where the normaliser makes two of one
    output = jiwer.process_words(*(" ".join(text.replace(" ", "_") for text, _ in side) for side in (said, heard)))
    starts, ends = [], []
    for chunk in output.alignments[0]:
        for step in range(chunk.ref_end_idx - chunk.ref_start_idx if chunk.type == "equal" else 0):
            place, word = chunk.ref_start_idx + step, heard[chunk.hyp_start_idx + step][1]
            clip = said[place][1]
            if place == 0 or said[place - 1][1] is not clip:
                starts.append(word.start - clip.start)
            if place + 1 == len(said) or said[place + 1][1] is not clip:
                ends.append(word.end - clip.end)
    return starts, ends
