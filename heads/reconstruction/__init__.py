"""Learned reconstruction: from too few samples to an image, held to the samples in every step.

Not a kind of head (`heads/base.py`): a head reads studies, and this makes them, out of k-space.
"""
