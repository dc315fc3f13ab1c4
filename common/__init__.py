"""What every part of the package stands on: errors, files, locks, JSON, checked values. Nothing heavy."""
