"""`dune app`: a page on this machine that photos are dropped on, and that shows what dune makes of them."""
