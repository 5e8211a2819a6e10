"""Damaged and hostile files for every reader: what is tried, what counts as a defect, and how it is told.

``python -m fuzz --targets nifti --files 10000 --seed 1 --out FOLDER``; see ``fuzz/harness.py``.
"""
