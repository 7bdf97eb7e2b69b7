"""Tools behind `detris data check` and `detris data convert`."""
