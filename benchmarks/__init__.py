"""What a user runs to decide whether to switch, and what tells us when we got slower."""
