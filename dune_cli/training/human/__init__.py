"""Training of a head for people: `dune train human` (docs/models/people-head.md)."""
