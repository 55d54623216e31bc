"""Runs the teacher once over the utterances and keeps its distributions."""
