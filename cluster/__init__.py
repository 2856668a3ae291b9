"""The lab on Ray: every simulated actor is a Ray actor of its own, and real parallel hardware picks the next step.

The way of one access: a thread's host sends it to the host that owns the cell; the owner applies it, logs the step and answers.
All messages are frames of `cluster.messages`, carried by a `cluster.transport`; `cluster.engine` knows no Ray and is the whole
protocol, `cluster.host` puts an engine into a Ray actor, `cluster.live` plays rounds, `cluster.parity` holds every round
against the World.  This is the only package that imports ray.
"""
