"""What is wrong with a job, and the rules that find it."""
