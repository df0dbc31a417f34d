"""Runs under torchrun: the launcher, with rank 0 seconds behind the others."""

import os
import time


def main() -> None:
    from grove_megatron import pretrain
    from grove_megatron.training import launch  # noqa: F401 - what takes a time of its own

    if os.environ["RANK"] == "0":
        time.sleep(5)

    pretrain.main()


if __name__ == "__main__":
    main()
