"""Slot ``weigh``: changes the weights of what is selected."""
