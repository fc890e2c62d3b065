"""Structure from motion: photos, features, pairs, matches, verification, mapping, localization. Also the core of
relocalization; everything computed a photo or a pair is cached once."""
