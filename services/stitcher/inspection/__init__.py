"""Reports on a calibration, for the operator and for metrics: figures, sentences, pictures."""
