"""What was not measured, guessed from what was: relaxation and diffusion maps, and a series of another contrast.

Not a kind of head (`heads/base.py`): heads find things in a study, and in what is guessed here nothing may be found.
"""
