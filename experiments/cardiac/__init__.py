"""Hearts instead of brains (Billot et al. 2023, section 5.4): from label maps to scores with one command.

``python -m experiments.cardiac --maps FOLDER --out FOLDER``; docs/cardiac.md tells the whole.
"""
