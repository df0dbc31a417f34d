"""Which layouts are open, and the best of them."""
