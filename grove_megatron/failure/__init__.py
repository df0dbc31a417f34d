"""How a job of several ranks ends when one of them fails; begin with :mod:`.watch`."""
