"""The pages of every flag and every command, made from the code."""
