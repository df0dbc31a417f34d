"""The Megatron modules of a Grove layer. Read ``moe/README.md`` for the path of a token."""
