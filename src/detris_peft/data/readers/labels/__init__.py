"""Exports of labeling tools: images whose objects have masks, classes, and perhaps sentences."""
