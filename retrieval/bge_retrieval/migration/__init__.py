"""Copy collections of any vectors to BGE vectors, move aliases, and add vectors in place."""
