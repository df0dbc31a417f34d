"""Weights from Hugging Face to Megatron: names as data, a few typed transforms, no leftovers."""
