"""The machines of a job, looked at together before it starts: see README.md."""
