"""The sweep of one unit: through an engine on the host or on the device, into a sink.

`job` (what all units share), `start` (which sweep suits the engine), `unit` (which tiles, which rows); then `host`:
five stages joined by the queues of `flow`, which cut what `rows` holds, blend in a `strip` and gather `groups`; or
`device`: rows go up by `device_band` and come down by `device_landing`.
"""
