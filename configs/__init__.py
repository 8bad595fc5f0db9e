"""widen.configs"""
