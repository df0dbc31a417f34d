"""Which layouts Megatron refuses, and why: of a plan and of a job."""
