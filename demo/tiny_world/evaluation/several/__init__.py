"""Scenes of several subjects: is each itself, or are they mixed?"""
