"""What `dualtoken doctor --gpu-proof` proves, a file for each proof with a function `prove(setting)`."""
