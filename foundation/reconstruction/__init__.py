"""From raw data to images without a network: the classical methods, what they are measured by, and `larmor reconstruct`."""
