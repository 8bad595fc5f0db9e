"""widen.deploy"""
