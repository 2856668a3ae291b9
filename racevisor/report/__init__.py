"""One trace, or one directory of rounds, as a page that opens offline; and as files that other viewers read."""
