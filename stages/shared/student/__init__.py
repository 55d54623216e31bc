"""The student: a Whisper whose feed-forward blocks have gained language-specific experts behind learned gates (CLSR)."""
