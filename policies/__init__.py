"""widen.policies"""
