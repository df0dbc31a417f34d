"""What a model is, said once: its sizes, every weight of it, and its names in Hugging Face's files.

Read by the planner, the converters, the bridge and training. Needs neither torch nor Megatron.
"""
