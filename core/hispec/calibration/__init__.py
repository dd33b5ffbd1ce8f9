"""Finding the fastest hierarchy: costs are measured, texts recorded, hierarchies replayed, the best ones timed."""
