"""widen.randomization"""
