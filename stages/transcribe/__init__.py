"""Transcribes recordings with the decoder that `evaluate` uses."""
