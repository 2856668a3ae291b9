"""The races: one file each, loaded by path.  Nothing imports this package; it exists so that a wheel carries the files."""
