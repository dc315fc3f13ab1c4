"""A published language model on two CPU cores: trained, fine-tuned in several ways, and compared."""
