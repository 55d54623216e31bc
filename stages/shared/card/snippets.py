"""The lines that run a model, here and elsewhere, for its card. `here` is the folder that holds the card."""

from stages.shared.whisper.window import FRAMES_PER_SECOND, FULL_WINDOW_S, POSITIONS_PER_SECOND

OURS = """```python
from pipeline import load_model

print(load_model("here").transcribe("speech.wav", language="{code}").text)
```

`pipeline` is of the package whisper-offline-distillation, whose `pipeline export` writes the model for faster-whisper,
whisper.cpp, transformers, PEFT and ONNX Runtime."""

OURS_WINDOW = """A recording of any length is cut at pauses into windows of at most {window} s, as in training."""

TRANSFORMERS = """```python
from transformers import pipeline

transcribe = pipeline("automatic-speech-recognition", "here")
print(transcribe("speech.wav", generate_kwargs={{"language": "{code}", "task": "transcribe"}})["text"])
```"""

TRANSFORMERS_CUT = """```python
import soundfile, torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

model = WhisperForConditionalGeneration.from_pretrained("here")
encoder = model.model.encoder
encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:{positions}])
model.config.max_source_positions = {positions}  # {window} s
extract = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length={window})
samples, rate = soundfile.read("clip.wav", dtype="float32")  # 16 kHz, mono, at most {window} s
features = extract(samples, sampling_rate=rate, return_tensors="pt").input_features
ids = model.generate(features, language="{code}", task="transcribe")
print(WhisperTokenizer.from_pretrained("here").decode(ids[0], skip_special_tokens=True))
```"""

FASTER_WHISPER = """```python
from faster_whisper import BatchedInferencePipeline, WhisperModel

model = BatchedInferencePipeline(WhisperModel("here"))  # it cuts at pauses, and no window is cut off
segments, _ = model.transcribe("speech.wav", language="{code}", without_timestamps=True)
print(" ".join(segment.text.strip() for segment in segments))
```"""

FASTER_WHISPER_CUT = """```python
from functools import partial

import faster_whisper.transcribe
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.audio import pad_or_trim

# faster-whisper 1.2 fills the features of each window up to 30 s before the encoder: this keeps {window} s
faster_whisper.transcribe.pad_or_trim = partial(pad_or_trim, length={frames})
model = BatchedInferencePipeline(WhisperModel("here"))  # it cuts at pauses, and no window is cut off
segments, _ = model.transcribe("speech.wav", language="{code}", without_timestamps=True, chunk_length={window})
print(" ".join(segment.text.strip() for segment in segments))
```"""

PEFT = """```python
from peft import PeftModel
from transformers import WhisperForConditionalGeneration

base = WhisperForConditionalGeneration.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "here").merge_and_unload()
```"""

FLASH = """`-nfa` turns flash attention off. With flash attention whisper.cpp 1.8 also attends to the rows that fill its buffers
up to a multiple of 256 (ggml-org/whisper.cpp, pull request 3941), which changes words."""

WHISPER_CPP = f"""```
whisper-cli -m here/ggml-model.bin -l {{code}} -nt -nfa -f speech.wav
```

{FLASH}"""

WHISPER_CPP_CUT = f"""```
whisper-cli -m here/ggml-model.bin -l {{code}} -nt -nfa -ac {{positions}} -f clip.wav
```

`clip.wav` has at most {{window}} s: whisper.cpp goes on in steps of 30 s, and with `-ac` hears only the beginning of each.
{FLASH}"""

ONNX = """```python
import json, numpy, onnxruntime, soundfile
from transformers import WhisperFeatureExtractor, WhisperTokenizer

encoder, decoder = (onnxruntime.InferenceSession(f"here/{{name}}coder.onnx") for name in ("en", "de"))
tokenizer = WhisperTokenizer.from_pretrained("here")
extract = WhisperFeatureExtractor.from_pretrained("here")
settings = json.load(open("here/generation_config.json"))
prompt = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|{code}|>", "<|transcribe|>", "<|notimestamps|>"])
never = [*(settings["suppress_tokens"] or []), *range(prompt[-1] + 1, len(tokenizer))]  # no timestamps
first = [*never, *(settings["begin_suppress_tokens"] or [])]


def run(session, **inputs):
    wanted = {{one.name for one in session.get_inputs()}}  # a model without experts does not ask for the language
    return session.run(None, {{name: value for name, value in inputs.items() if name in wanted}})


samples, rate = soundfile.read("clip.wav", dtype="float32")  # 16 kHz, mono, at most {window} s
features = extract(samples, sampling_rate=rate, return_tensors="np").input_features
language = numpy.array([prompt[1]])
cross_keys, cross_values = run(encoder, features=features, language=language)
keys = values = numpy.zeros((*cross_keys.shape[:3], 0, cross_keys.shape[4]), numpy.float32)
tokens = list(prompt)
for position in range(settings["max_length"] - 1):
    past = dict(past_keys=keys, past_values=values, cross_keys=cross_keys, cross_values=cross_values)
    logits, keys, values = run(decoder, token=numpy.array([[tokens[position]]]), language=language, **past)
    if position >= len(prompt) - 1:
        logits[0, never if position >= len(prompt) else first] = -numpy.inf
        tokens.append(int(logits[0].argmax()))
    if tokens[-1] == settings["eos_token_id"]:
        break
print(tokenizer.decode(tokens, skip_special_tokens=True))
```"""

SNIPPETS = {
    "whisper": (TRANSFORMERS, TRANSFORMERS_CUT),
    "ctranslate2": (FASTER_WHISPER, FASTER_WHISPER_CUT),
    "peft": (PEFT, PEFT),
    "ggml": (WHISPER_CPP, WHISPER_CPP_CUT),
    "onnx": (ONNX, ONNX),
}
WINDOW = (
    "The model was trained, and its error rates were measured, on windows of {window} s. The encoder's positions of all 30 s "
    "are in this folder, so that any program runs it; in another window it says other things. The window is `chunk_length` "
    "{window} in preprocessor_config.json for faster-whisper, with the line that stands in the card of an export for it, and "
    "`audio_ctx` {positions} in whisper.cpp."
)


def snippet(format_name: str, code: str, audio_window_s: int, base: str) -> str:
    """Returns the lines for a format. code: of the language whose token stands in the prompt. base: of an adapter."""
    whole, cut = SNIPPETS[format_name]
    text = cut if audio_window_s < FULL_WINDOW_S else whole
    positions = audio_window_s * POSITIONS_PER_SECOND
    return text.format(
        code=code, window=audio_window_s, positions=positions, frames=audio_window_s * FRAMES_PER_SECOND, base=base
    )


def about_window(audio_window_s: int) -> str:
    """Returns what to know about a window that is shorter than Whisper's."""
    return WINDOW.format(window=audio_window_s, positions=audio_window_s * POSITIONS_PER_SECOND)
