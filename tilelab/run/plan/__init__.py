"""What a run will take, in whole numbers, before it starts."""
