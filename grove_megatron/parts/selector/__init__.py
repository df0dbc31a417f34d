"""Slot ``selector``: experts selected, and most often weighed, otherwise than by scores."""
