"""Every message of the package, collected from its source: the pages, and ``grove explain``."""
