"""Calibration: the cameras' directions and lenses, found from their pictures alone."""
