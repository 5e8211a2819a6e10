"""Which anatomies a network is shown: label maps described, weighted by how rare they are, and edited into shapes no map has."""
