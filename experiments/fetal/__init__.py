"""Fetal brains: does a sampler that favours rare anatomies help, do edited anatomies, and at whose cost?

``python -m experiments.fetal --maps FOLDER --out FOLDER``; docs/fetal-study.md tells the whole.
"""
