"""The queue worker on RunPod."""
