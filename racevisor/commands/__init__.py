"""What each command of the command line does; `racevisor.cli` says how it is called."""
