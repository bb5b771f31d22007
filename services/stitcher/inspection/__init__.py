"""What people and metrics are told of a calibration: figures, sentences, pictures."""
