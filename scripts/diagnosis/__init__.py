"""What `dualtoken doctor` examines, a file for each part of an installation, and the proof on GPUs."""
