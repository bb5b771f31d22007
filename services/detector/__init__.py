"""The detector: reads frames in place from shared memory, detects objects, and publishes their boxes."""

import os

# Disable onnxruntime's telemetry, which otherwise reports its use to the vendor. It reads the variable when it is
# loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
