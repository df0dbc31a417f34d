"""What a job will cost: parameters, memory, traffic and FLOPs, from its sizes alone.

Standard library only, so that it answers on any machine. ``training/sizes.py`` makes the sizes of
a Megatron command line.
"""
