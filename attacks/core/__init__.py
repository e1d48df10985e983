"""Tools of attacks: base class, norms, objectives, input gradients, random numbers."""
