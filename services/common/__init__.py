"""What the services share: configuration, logs, start and stop, following, status, and the detections' wire format."""
