"""What trained models reach, each a page in benchmarks/results.

models.py    every architecture, from a step of training to inference.
results.py   accuracy of finished trainings; results_page.py writes it down.
ablation.py  what PmcaNet's parts are worth.
"""
