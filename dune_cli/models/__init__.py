"""Networks: tensors in, tensors out. No paths, no I/O; nothing here imports another room."""

import os

# Linux: activations of a hundred megabytes in huge pages, or page faults cost a CPU 5-12 % of a two-view forward.
# PyTorch looks once, at its first large allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
