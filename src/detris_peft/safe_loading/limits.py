"""Limits of the readers in this package. They are far above any real file, and far below what exhausts a machine."""

MAX_DEPTH = 100  # nesting of JSON and YAML values, and of pickled containers

# Text files.
MAX_LARGE_INTEGERS = 1_000  # integers of more than 64 bits in a JSON file
MAX_YAML_CHARACTERS = 1_000_000  # of a YAML file, also with its aliases expanded
MAX_YAML_NODES = 100_000  # values of a YAML file with its aliases expanded
MAX_NUMBER_CHARACTERS = 1_000  # of a number in YAML: converting long ones takes quadratic time

# Pickles: REFER's references, and the index of a checkpoint.
MAX_PICKLE_BYTES = 1_000_000_000
MAX_INTEGER_BYTES = 100
MAX_INTEGER_KEY = 2**60  # Python hashes larger integers modulo 2**61 - 1, so many can be chosen to collide
# Values and characters with shared containers expanded: this many per byte of the file, or for small files in total.
MAX_EXPANSION = 20
MIN_EXPANDED = 1_000_000

# Checkpoints.
MAX_INFLATED_BYTES = 64_000_000  # by which the members of a zip file may be larger than the file
MAX_ARCHIVE_MEMBERS = 100_000
MAX_INDEX_BYTES = 20_000_000  # of the pickle that says where the tensors are
MAX_OVERLAP = 4  # size of all tensors in relation to the storages that they share
MAX_TENSOR_DIMENSIONS = 16
MAX_SAFETENSORS_HEADER = 10_000_000  # bytes
