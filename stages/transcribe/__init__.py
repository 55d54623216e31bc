"""Finds the recordings that a user names, and writes their transcripts in the formats of other programs."""
