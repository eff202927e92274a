"""What is run by `make` and never shipped: the bill of materials, the audit, the pages made from code, the site."""
