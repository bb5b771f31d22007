"""The stitcher: renders the pictures of several cameras into one panorama, directly in the ring's slots."""
