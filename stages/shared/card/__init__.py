"""The card of a model: README.md beside its weights, with the hub's metadata, written from the facts at hand."""
