"""The panorama: which pixel comes from where, in which colour, drawn into the ring."""
