"""The simulated machine against a real one: recorded operations and the state that a real KVM showed after each."""
