"""The sweep of one unit: through an engine on the host or on the device, into a sink."""
