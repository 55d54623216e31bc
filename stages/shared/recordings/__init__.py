"""Sound files of any kind: their frames, and whether all of them are there."""
