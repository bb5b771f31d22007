"""What the services share: configuration, logs, start and stop, status, and the detections' wire format."""
