"""The proof of a conversion, for a machine (``report.json``) and for a person (``report.html``)."""
