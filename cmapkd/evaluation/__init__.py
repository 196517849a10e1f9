"""What a trained model is worth: retrieval, zero-shot classification, visual questions, parameters, FLOPs and latency."""
