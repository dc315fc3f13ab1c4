"""The small public data sets that nano is trained on."""
