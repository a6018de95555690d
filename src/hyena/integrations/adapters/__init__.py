"""Builders for the attention of other projects' models: one file a project."""
