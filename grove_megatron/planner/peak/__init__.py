"""What the layers of a stage keep, and the worst moment of their backward pass."""
