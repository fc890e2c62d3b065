"""`dune train depth | segment | classify`: heads on the features of an encoder."""
