"""The stitcher: five cameras in, one panorama out, rendered straight into the ring's slots."""
