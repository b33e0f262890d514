"""Texts to vectors and scores on one device. Imports nothing of the other packages."""
