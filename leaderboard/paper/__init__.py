"""The paper's tables, cell by cell: published numbers, what our records say of each, and the page that shows both."""
