"""What a result is worth: calibration, uncertainty, subgroups, unknown studies, benign changes, artefacts, scanners, leaks.

One file for each question, each with a typed report; `run.py` asks them for `larmor evaluate ... --trust`, `__main__.py` gives a
fitted model its calibration. `docs/trust.md` says what the figures mean.
"""
