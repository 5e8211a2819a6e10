"""Which anatomies a network is shown: label maps described, weighted by rarity, and edited into shapes no map has."""
