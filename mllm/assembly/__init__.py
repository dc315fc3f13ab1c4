"""The complete model: assembly from parts, saving, loading, adapters, quantization, model card."""
