"""What a fleet does that is larger than any machine at hand, from the measured times of one node.

`make fleet-sim` simulates 3 to 1,000 nodes behind one gateway, with 2,000 to 1,000,000 adapters,
event by event, and writes `results/fleet_sim.json` and `.svg`. Nothing a node does is guessed:

how fast it decodes, by requests at once      results/cpu.json, `concurrency`
what an adapter weighs, and a copy of it      results/cpu.json, `memory`, `machine.copy_bytes_s`
a fetch from the store, resolving a name      results/store.json, `sizes`, `scale`
how soon a node serves what was published     results/chaos.json, T9
S3 and Redis requests of one act              counted here, on SeaweedFS and Valkey (counted.py)
memory, threads, polling, eviction            the node's own defaults, and its own recency.py

What is assumed is told in the file under `assumed`: traffic, its skew, how often adapters are
published, prices. Prices have their sources in `prices.toml`. Left out: the network between client
and node, what nodes take from each other in the store, and nodes that come and go.
"""
