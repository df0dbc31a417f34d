"""Slot ``coefficient``: how the weight of the balance loss moves after every global batch."""
