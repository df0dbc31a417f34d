"""Differentiable collectives on torch.distributed, without Megatron."""
