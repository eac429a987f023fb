"""Model files: what they hold, without running them."""
