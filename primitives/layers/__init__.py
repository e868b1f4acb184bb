"""Layers as a user makes and calls them."""
