"""How near a depth or a normal map comes to the truth."""
