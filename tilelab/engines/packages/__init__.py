"""Models that come as something else than an engine file (checkpoints, packages, addresses); each leads to one."""
