"""vemray: volume electron microscopy at scale. See docs/ and `vemray --help`."""
