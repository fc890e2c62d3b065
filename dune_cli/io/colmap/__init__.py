"""COLMAP models in and out, text and binary."""
