"""Sends a model to the Hugging Face hub, with its card."""
