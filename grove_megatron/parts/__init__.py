"""The parts that a router is composed of: a file each, found by the registry."""
