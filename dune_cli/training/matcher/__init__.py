"""Training of the matcher `dune`: scenes and teacher matches, labels, loss, trainer, and final report."""
