"""`dune view`: results in a local page, or as one HTML file, by viser."""
