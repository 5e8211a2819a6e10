"""The project's own tools: licences, audit. Not part of the package."""
