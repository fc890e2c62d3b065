"""Cameras, poses, matching, stereo. Pure functions on arrays, tested in float64; imports no other room."""
