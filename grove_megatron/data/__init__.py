"""Text into the files of tokens that Megatron trains on."""
