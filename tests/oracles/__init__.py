"""Independent counts, which share no code with what they check."""
