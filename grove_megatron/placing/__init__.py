"""Which groups live where: chosen from what was recorded, kept in a file, applied to a job."""
