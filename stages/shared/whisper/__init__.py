"""Whisper's weights, languages, features, target tokens and decoding."""
