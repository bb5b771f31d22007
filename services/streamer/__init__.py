"""The streamer: serves the panorama and its detections on a web page, and the health and metrics of all services."""
