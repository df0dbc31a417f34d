"""``python -m grove_megatron`` is the ``grove`` command; it works under torchrun."""

from .cli import main

if __name__ == "__main__":
    main()
