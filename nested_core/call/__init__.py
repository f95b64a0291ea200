"""One call of the model, planned: which row says which subject where, and what each site adds.

A plan is made on the CPU from what is known before the model runs, is finished when it is made, and
knows no host. `plan.py` makes it, `site.py` uses it.
"""
