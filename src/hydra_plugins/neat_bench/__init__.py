"""What Hydra finds of neat_bench in its plugin namespace."""
