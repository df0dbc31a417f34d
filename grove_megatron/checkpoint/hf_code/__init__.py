"""Code for transformers, which ``grove export`` puts beside weights; nothing here imports it."""
