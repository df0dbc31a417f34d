"""Slot ``local``: experts that need no FFN, computed where the token is."""
