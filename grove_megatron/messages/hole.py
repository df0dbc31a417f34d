"""What stands in a message for what is known only when it is said."""

HOLE = "…"
