"""The machine: its cores, instruction sets and memory."""
