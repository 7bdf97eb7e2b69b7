"""Limits of the readers in this package. They are far above any real file, and far below what exhausts a machine."""

MAX_DEPTH = 100  # nesting of JSON and YAML values, and of pickled containers
MAX_YAML_NODES = 100_000  # nodes of a YAML file with its aliases expanded
