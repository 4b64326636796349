"""What a training on many machines needs: on paper from measured bytes, and in processes."""
