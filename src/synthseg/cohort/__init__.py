"""Many scans: where they come from, who works on them, the ledger that loses none, and the tables they end in."""
