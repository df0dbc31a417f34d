"""Names in the folder that a job saves its checkpoints in, as Megatron chooses them."""

# Names the checkpoint to resume from.
TRACKER = "latest_checkpointed_iteration.txt"
# What the tracker names, and the folder of, a checkpoint that belongs to no iteration.
RELEASE = "release"
# Written last: it marks a complete checkpoint.
COMPLETE = "metadata.json"
# The index of torch's format; Megatron takes a folder that has it alone for another format.
INDEX = ".metadata"
