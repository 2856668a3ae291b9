"""What the logs of live runs say: read, counted, compared, merged.  Imported by `racevisor analyze` alone, for it imports polars.

`read` makes tables of JSON lines; every other module answers one question about them with a table of its own.
"""
