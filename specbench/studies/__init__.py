"""Measurements beside a run: benchmark, profile, roofline, scaling, and tuning."""
