"""Slot ``gate``: what makes logits of tokens; without one, Megatron's matrix."""
