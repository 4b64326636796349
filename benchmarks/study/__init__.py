"""Study of the papers' claims on Fashion-MNIST."""
