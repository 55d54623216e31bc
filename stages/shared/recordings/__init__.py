"""Reads the frames of sound files of any kind, and finds out whether frames are missing."""
