"""The detector's model: a file or a bundle in, boxes out, whatever exporter made it.

``model`` is what the service uses. Below it: ``formats`` (one module a format), ``session`` (ONNX Runtime),
``onnx_file`` (what a file is, before it is loaded), ``bundle`` (a directory with a manifest), ``inputs`` (what the
network takes), ``classes`` and ``wanted`` (names, labels and thresholds).
"""
