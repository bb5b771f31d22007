"""How the cameras stand and what their lenses are, found from their pictures alone."""
