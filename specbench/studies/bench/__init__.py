"""``python -m specbench.bench``: is the harness itself fast enough to be believed?"""
