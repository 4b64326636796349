"""What networks with and without norms cost, and how times and memory are measured."""
