"""The images: what their build takes out of wheels, picks from packages, and writes into the notices."""
