"""How an image comes about: relaxation of tissues, the signal of each sequence, k-space and coils, artefacts."""
