"""The record of what experts did during training, and ``grove report``, which draws it.

Nothing of torch or Megatron is imported here: a record can be read on any machine.
"""
