"""Strategies: one small file each.  A strategy has three verbs, begin, pick and end; it sees channels, never actors."""
