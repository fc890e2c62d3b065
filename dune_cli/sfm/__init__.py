"""Structure from motion: photos, features, pairs, matches, verification, mapping, localization."""
