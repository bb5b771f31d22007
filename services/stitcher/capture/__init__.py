"""Pictures of the cameras, as they come: connections, clocks, damage, and sets of one instant."""
