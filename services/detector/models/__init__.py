"""The detector's model: loads a file or a bundle of any supported exporter, and returns boxes.

The service uses ``model``. It builds upon ``formats`` (one module per format), ``session`` (ONNX Runtime),
``onnx_file`` (inspection of a file before it is loaded), ``bundle`` (a directory with a manifest), ``inputs`` (the
network's inputs), ``classes`` and ``wanted`` (names, labels and thresholds).
"""
