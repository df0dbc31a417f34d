"""``torchrun -m grove_megatron.pretrain``: Megatron's GPT pretraining with Grove layers.

Takes every flag of Megatron's pretraining and the ``--grove-*`` flags (``--help`` lists both).
Without ``--grove-num-groups`` the run is Megatron's own.
"""

import sys


def main() -> None:
    """Check the installation, choose the runtime, train."""
    from .failure.watch import interruptible, watched
    from .training.one_job import writing_alone
    from .training.start import alone, started

    alone()
    with interruptible(), started(), watched(), writing_alone():
        from .training.launch import pretrain

        pretrain()


if __name__ == "__main__":
    sys.exit(main())
