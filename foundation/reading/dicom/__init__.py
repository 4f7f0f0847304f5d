"""DICOM studies: a folder or zip of anything to volumes that know where they are, with reasons for what was left out.

`study.py` is the way in. It hands the files to a child process (`child.py`), which reads headers (`headers.py`), groups them into
volumes (`volumes.py`), says what contrast each has (`contrast.py`) and converts those that were chosen (`convert.py`).
"""
