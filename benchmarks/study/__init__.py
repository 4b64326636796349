"""Study of networks with and without norms on the digits."""
