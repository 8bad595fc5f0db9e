"""widen.train"""
