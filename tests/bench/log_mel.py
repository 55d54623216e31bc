"""Log-mel of clips of about 4 s against the stock extractor's 30 s path, with one and with two threads.

    python tests/bench/log_mel.py --utterances data/utterances/cs/train

stock: `WhisperFeatureExtractor` as published, padding to 30 s. log_mel: `LogMel` with the same window. Both clip by clip.
"""

import torch
from common import alternate, arguments, begin, ratio
from transformers import WhisperFeatureExtractor

from stages.shared.audio import SAMPLE_RATE, decode_flac
from stages.shared.whisper.features import LogMel

WINDOW = 30  # seconds


def main() -> None:
    args = arguments(__doc__, rounds=(9, "alternations"), passes=(2, "over the clips in a round"), mels=(80, "bins"))
    _, shards = begin(args)
    rows = [row for shard in shards for row in shard if 3.5 <= row["seconds"] <= 4.5]
    clips = [decode_flac(row["audio"]) for row in rows]
    passes = clips * args.passes
    extractor, log_mel = WhisperFeatureExtractor(feature_size=args.mels), LogMel(args.mels, WINDOW)

    def stock() -> list[torch.Tensor]:
        return [extractor(clip, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features for clip in passes]

    def ours() -> list[torch.Tensor]:
        return [log_mel([clip]) for clip in passes]

    mean = sum(map(len, clips)) / len(clips) / SAMPLE_RATE
    apart = max(float((a - b).abs().max()) for a, b in zip(stock(), ours(), strict=True))
    print(f"{len(clips)} clips of {mean:.2f} s on average, {args.mels} mels: values at most {apart:.1e} apart")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds = alternate({"stock": stock, "log_mel": ours}, args.rounds)
        fastest = ", ".join(f"{name} {1000 * min(each) / len(passes):.2f} ms" for name, each in seconds.items())
        print(f"{threads} threads, the fastest round: {fastest}; {ratio(seconds, 'stock', 'log_mel')}")


if __name__ == "__main__":
    main()
