"""What several stages use: audio, recordings, text normalisation and rates, Whisper, and the student model."""
