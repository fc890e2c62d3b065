"""The two published human heads (spec 4): networks only, from a square image to people's parameters."""
