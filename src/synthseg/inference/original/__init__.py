"""Segmenting as the original does: its settings on our pipeline (``like``), or its steps one by one (``strict``)."""
