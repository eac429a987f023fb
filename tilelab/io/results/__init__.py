"""Results out: the sinks, the finished result, and its other forms."""
