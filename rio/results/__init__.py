"""Results files (detections) to AP and errors, under the LVIS protocol."""
