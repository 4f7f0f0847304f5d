"""Whether a prognosis is worth anything: every row that it has to stand beside, on one set of patients (docs/prognosis.md).

`patients` takes them from a table and `collect` from a collection, `fit` fits one row, `rows` does so for all of them in
cross-validation and measures, `pictures` draws, `command` is `larmor prognosis`.
"""
