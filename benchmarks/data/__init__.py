"""How fast images are read and varied, and what memory that takes."""
