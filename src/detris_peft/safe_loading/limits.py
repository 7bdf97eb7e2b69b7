"""Limits of the readers in this package. They are far above any real file, and far below what exhausts a machine."""

MAX_DEPTH = 100  # nesting of JSON and YAML values, of XML elements, and of pickled containers

# Text files.
MAX_LARGE_INTEGERS = 1_000  # integers of more than 64 bits in a JSON file
MAX_YAML_CHARACTERS = 100_000  # of a YAML file, also with its aliases expanded
MAX_YAML_NODES = 20_000  # values of a YAML file with its aliases expanded
MAX_NUMBER_CHARACTERS = 1_000  # of a number in YAML: converting long ones takes quadratic time
MAX_XML_BYTES = 500_000_000  # of an XML file
MAX_XML_NODES = 5_000_000  # elements and attributes of an XML file, each of which needs about 100 bytes

# Pickles: REFER's references, and the index of a checkpoint.
MAX_PICKLE_BYTES = 200_000_000
MAX_INTEGER_BYTES = 100
MAX_INTEGER_KEY = 2**60  # Python hashes larger integers modulo 2**61 - 1, so many can be chosen to collide
# With shared parts expanded, for small files and per byte of larger ones:
MIN_EXPANDED = 1_000_000  # values, and characters
MAX_EXPANDED_VALUES = 2
MAX_EXPANDED_CHARACTERS = 20
# Lists, dicts, sets and tuples: this many in a small file, and one per so many bytes in a larger one.
MIN_CONTAINERS = 500_000
MIN_CONTAINER_BYTES = 8

# Checkpoints.
MAX_INFLATED_BYTES = 64_000_000  # by which the members of a zip file may be larger than the file
MAX_ARCHIVE_MEMBERS = 100_000
MAX_INDEX_BYTES = 20_000_000  # of the pickle that says where the tensors are
MAX_OVERLAP = 4  # size of all tensors in relation to the storages that they share
MAX_TENSOR_DIMENSIONS = 16
MAX_SAFETENSORS_HEADER = 2_000_000  # bytes
