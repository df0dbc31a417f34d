"""Weights between Hugging Face and Megatron: names as data, a few typed transforms, no leftovers."""
