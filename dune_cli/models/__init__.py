"""Networks: tensors in, tensors out. No paths, no I/O; nothing here imports another room."""
