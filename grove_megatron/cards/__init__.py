"""Cards of the parts of the router, a page each in ``docs/parts``, made from their rows."""
