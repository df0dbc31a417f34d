"""Text from a model: Megatron's own inference engine, on the layers of this package."""
