"""Trains a student from shards; the teacher is neither imported nor opened."""
