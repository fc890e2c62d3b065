"""Images in; PLY, OBJ, GLB, JSON, NPZ, PNG, COLMAP out. Plain arrays; imports no other room."""
