"""Programs with answers that are known from elsewhere: what `racevisor selfcheck` and the tests hold the searches against."""
