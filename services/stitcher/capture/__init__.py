"""Capture of the cameras' pictures: connections, clocks, damage, and frame sets of one instant."""
