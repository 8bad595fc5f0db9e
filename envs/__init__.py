"""widen.envs"""
