"""Interactive views for the notebooks, one module a view. `import rio` offers their names."""
