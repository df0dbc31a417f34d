"""``grove plan``: its command line, its table and its page."""
