"""The tools of attacks: their base class, norms, objectives, the input gradient, random numbers."""
