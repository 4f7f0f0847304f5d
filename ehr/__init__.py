"""The patient's record beside the images: FHIR in, and what of it may be known when the images are read.

    records = read_records("bundle.json")                         bundle.py, resources.py, record.py
    record = records.only()
    index = index_of(record, study_uid="1.2.3")                   index.py: the rule that keeps the future out
    admitted = admit(record, index)
    sequence = sequence_of(admitted, vocabulary)                  features.py: arrays for encoder.py, or a table

docs/record.md says what is read and what is left out; `larmor record SOURCE` counts both.
"""
