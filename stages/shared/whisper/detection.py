"""Which language is spoken: the probabilities of Whisper's language tokens after the start of transcript."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from cache.errors import PipelineError
from stages.shared.whisper.features import LogMel
from stages.shared.whisper.languages import LANGUAGES
from stages.shared.whisper.models import Whisper
from stages.shared.whisper.targets import token_of

# Shapes: B clips, L languages


@torch.inference_mode()
def detect_language(
    whisper: Whisper, clips: list[np.ndarray], dtype: torch.dtype, among: Sequence[str] = ()
) -> tuple[str, float]:
    """Returns the language of the clips and its probability: the mean over the clips. Experts are not used.

    clips: (samples,) float32 at 16 kHz, at most one window each; at least one. among: codes of the languages to choose
    from; (): all that the model has a token for. An English-only model says English. Raises PipelineError where the most
    likely token stands for several of these languages.
    """
    if whisper.english_only:
        return "en", 1.0
    names = {
        code: whisper.tokenizer.convert_tokens_to_ids(f"<|{token_of(whisper.model, code)}|>")
        for code in among or LANGUAGES
    }
    known = {code: token for code, token in names.items() if token not in (None, whisper.tokenizer.unk_token_id)}
    model, log_mel = whisper.model, LogMel(whisper.model.config.num_mel_bins, whisper.audio_window_s)
    start = torch.full((len(clips), 1), model.config.decoder_start_token_id, device=model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        encoded = BaseModelOutput(model.model.encoder(log_mel(clips).to(model.device)).last_hidden_state)
        logits_BV = model(encoder_outputs=encoded, decoder_input_ids=start, use_cache=False).logits[:, -1]
    probs_L = logits_BV[:, list(known.values())].float().softmax(-1).mean(0)
    best = int(probs_L.argmax())
    code = list(known)[best]
    if len(same := [other for other in known if known[other] == known[code]]) > 1:
        raise PipelineError(
            f"{' and '.join(same)} are trained under one token, so that the sound does not tell which it is: give the language"
        )
    return code, float(probs_L[best])
