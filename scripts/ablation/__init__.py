"""Ablations: the plan, its runs, what is measured on them, and the document made of the results."""
