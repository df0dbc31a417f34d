"""Runs under torchrun: training in which rank 1 fails at iteration 2.

The first argument is a file for the time of the failure, the rest are Megatron's flags.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    from grove_megatron import pretrain
    from grove_megatron.training import gpt

    failed_at = Path(sys.argv.pop(1))
    original = gpt.forward_step

    def forward_step(*args: Any, **named: Any) -> Any:
        from megatron.training import get_args

        if os.environ["RANK"] == "1" and get_args().curr_iteration == 1:
            failed_at.write_text(str(time.time()))
            raise RuntimeError("rank 1 fails at iteration 2")
        return original(*args, **named)

    gpt.forward_step = forward_step
    pretrain.main()


if __name__ == "__main__":
    main()
