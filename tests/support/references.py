"""What a teacher's record must hold, computed another way: one clip, no batch, no padding, float64 throughout."""

import copy

import numpy as np
import torch

from stages.shared.audio import decode_flac
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.models import Whisper


def prompt_of(whisper: Whisper, language: str = "cs") -> list[int]:
    names = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
    return whisper.tokenizer.convert_tokens_to_ids(names)


def targets_of(whisper: Whisper, utterance: dict) -> list[int]:
    """The transcript's tokens and end of text."""
    text = whisper.tokenizer.encode(f" {utterance['text']}", add_special_tokens=False)
    return [*text, whisper.tokenizer.convert_tokens_to_ids("<|endoftext|>")]


@torch.no_grad()
def reference(whisper: Whisper, utterance: dict, targets: list[int], prompt: list[int] | None = None) -> np.ndarray:
    """The full log-softmax (T, V) at the targets' positions."""
    prompt = prompt_of(whisper) if prompt is None else prompt
    features = LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)([decode_flac(utterance["audio"])])
    model = copy.deepcopy(whisper.model).double()
    inputs = torch.tensor([[*prompt, *targets]])
    logits = model(features.double(), decoder_input_ids=inputs, use_cache=False).logits[0]
    # the position that reads targets[t - 1] predicts targets[t]; the one that reads the prompt's last token targets[0]
    first = len(prompt) - 1
    return logits[first : first + len(targets)].log_softmax(-1).numpy()


def tail_of(row: dict, log_probs: np.ndarray) -> np.ndarray:
    """The probabilities (T, V) without the tokens that `row` keeps."""
    rest = np.exp(log_probs)
    rest[np.repeat(np.arange(len(rest)), row["top_counts"]), row["top_ids"].astype(int)] = 0
    return rest


def assert_is_distribution(row: dict, log_probs: np.ndarray, top_k: int, top_p: float, min_k: int, bits: int):
    """`row` keeps the fewest of the most likely tokens that reach top_p, but min_k at least and top_k at most."""
    ends = np.cumsum(row["top_counts"], dtype=int)
    assert len(ends) == len(row["tail_log_probs"]) == len(row["targets"]) == len(log_probs)
    for dense, start, end in zip(log_probs, [0, *ends[:-1]], ends, strict=True):
        ids, codes, kept = row["top_ids"][start:end].astype(int), row["top_probs"][start:end], end - start
        assert len(set(ids.tolist())) == len(codes) == kept
        # the most likely ones in order, but for ties within the rounding of float32
        np.testing.assert_allclose(dense[ids], np.sort(dense)[::-1][:kept], atol=1e-4)
        probs = np.exp(dense[ids])
        assert min_k <= kept <= top_k
        assert kept == top_k or probs.sum() > top_p - 1e-5
        assert kept == min_k or probs[:-1].sum() < top_p + 1e-5
        exact = np.maximum(probs**0.25 * (2**bits - 1), 1)
        np.testing.assert_allclose(codes, exact, rtol=0, atol=0.5 + 0.01)
    np.testing.assert_allclose(row["tail_log_probs"], np.log(tail_of(row, log_probs).sum(-1)), atol=1e-4)
    own = log_probs[np.arange(len(log_probs)), row["targets"].astype(int)]
    np.testing.assert_allclose(row["mean_log_prob"], own.mean(), atol=1e-4)
