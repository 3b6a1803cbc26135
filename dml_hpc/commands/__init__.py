"""One file a verb: wires the rooms together, does no arithmetic."""
