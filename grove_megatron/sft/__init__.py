"""Supervised fine-tuning: conversations in packed sequences, the loss on their answers alone."""
