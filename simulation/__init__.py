"""A federation on one machine: seeded sites, faults and attacks around the very training, gate and rules that real rounds use."""
