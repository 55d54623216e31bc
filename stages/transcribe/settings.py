"""The formats of a transcript."""

# Format -> the ending of its files
FORMATS = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
