"""Espalier beside other routers, each on one core: `python -m benchmarks.comparison`.

scenarios (what is asked) and subjects (who is asked) know nothing of each other. An experiment runs a static
worker, the subjects and the load for each scenario, and gives results: plain values, kept as JSON. The
report and the plot are made from those alone, so they can be made again without measuring.
"""
