"""The engine that all methods share: decode loop, trees, acceptance rules, target, back ends."""
