"""The detector: takes frames of the stream where they lie in shared memory, finds people in them, publishes boxes."""

import os

# Read when onnxruntime is loaded, which otherwise counts its uses for its maker: what a camera's host does is nobody's
# business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
