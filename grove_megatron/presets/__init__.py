"""Released models as Megatron's settings: ``--grove-preset NAME``."""
