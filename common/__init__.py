"""Infrastructure of all packages: errors, files, locks, JSON, checked values. Imports nothing heavy."""
