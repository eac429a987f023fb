"""The arithmetic of the sweep: cut tiles, blend logits, finish rows. No I/O, no engine."""
