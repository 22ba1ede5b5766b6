"""What the tables of `data/results` are measured with: one file a lesson, and the proving ground.

A study has `ROWS`, a list of keys such as {"method": "mean", "seed": 0} in order of value, and
`measure(row) -> dict`, which fills one; `python -m vreid_course study NAME` runs it.
"""
