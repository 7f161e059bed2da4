"""Does each node's working set stay small when there are more adapters than a node's pool holds?

`make placement` publishes 2,000 tiny adapters on a real SeaweedFS, starts three real nodes on the
default base behind a real Envoy, and asks them in proportion to Zipf(1.0). Once callers say
`x-adapter-id`, so that the ring sends an adapter to the node that has it; once, as the control,
they say nothing and Envoy takes any node. Each way has a warm-up that is not counted.

Nodes count by themselves: how often each adapter was asked of each, and how many versions became
resident, are read from their metrics. Beside them stands what the simulated fleet (fleet_sim/)
says of the same room, adapters and traffic, and whether its ring names the nodes that Envoy chose.
"""
