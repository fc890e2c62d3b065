"""One file a matcher: two images in, pixel correspondences with scores out.

Adding a file `name.py` that defines a subclass `Matcher` of `base.Matcher` adds the matcher `name` ("_" → "-").
"""
