"""Running networks: the same answer with less arithmetic and less memory, by any backend."""
