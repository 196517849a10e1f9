"""A finished run's student in the forms that others load: open_clip, ``transformers``, ONNX, with a model card."""
