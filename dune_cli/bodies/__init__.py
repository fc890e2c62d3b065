"""Parametric bodies behind one interface: Anny (bundled) and SMPL-X (the user's own file)."""
