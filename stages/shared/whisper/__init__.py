"""What every stage needs of Whisper: its weights, languages, features, text normaliser and decoding."""
