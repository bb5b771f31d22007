"""Rendering of the panorama: geometry, colours, and the warp into the ring."""
