"""Shards on disk: utterances and teacher distributions, in Parquet or WebDataset, with their manifests."""
