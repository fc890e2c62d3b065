"""Training of the matcher `dune`: where its supervision comes from (a file each), its loss, its run."""
