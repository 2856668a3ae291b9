"""The machine: what KVM does, as actors whose every shared access is one step.

Nothing here knows who chooses the next step (a search, a replay, or real parallel hardware); see `actors.ops`.
"""
