"""What is finished of a run, so that a killed one goes on where it was."""
