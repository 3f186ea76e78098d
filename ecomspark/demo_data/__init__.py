"""The sample shop: invoice lines of a real one (CC0), and queries and judgments written for it. See README.md."""
